//! `/proc/PID/cgroup`: where a process stands in the control groups.

/// One line of the file per hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    /// The path in the version 2 hierarchy.
    pub unified: Option<String>,
    /// Version 1: the controllers of each hierarchy and the path in it.
    pub legacy: Vec<(Vec<String>, String)>,
}

impl Cgroups {
    /// The one path that tells most: hosts that mount both versions often leave one of them at its root.
    pub fn path(&self) -> Option<&str> {
        let by_controller = |name: &str| {
            self.legacy
                .iter()
                .find(|(names, _)| names.iter().any(|n| n == name))
                .map(|(_, path)| path.as_str())
        };
        let known = [
            self.unified.as_deref(),
            by_controller("memory"),
            by_controller("name=systemd"),
        ];
        let mut paths = known
            .into_iter()
            .flatten()
            .chain(self.legacy.iter().map(|(_, path)| path.as_str()));
        let first = paths.next()?;
        Some(if first == "/" {
            paths.find(|path| *path != "/").unwrap_or(first)
        } else {
            first
        })
    }
}

/// Lines that are not of the form `number:controllers:path` are left out.
pub fn parse(bytes: &[u8]) -> Cgroups {
    let mut cgroups = Cgroups::default();
    for line in String::from_utf8_lossy(bytes).lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        // The group of a process can be removed under a zombie.
        let path = path.strip_suffix(" (deleted)").unwrap_or(path).to_owned();
        if number == "0" && controllers.is_empty() {
            cgroups.unified = Some(path);
        } else {
            cgroups
                .legacy
                .push((controllers.split(',').map(str::to_owned).collect(), path));
        }
    }
    cgroups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn version_2_has_one_line() {
        let cgroups = parse(b"0::/user.slice/user-1000.slice/session-3.scope\n");
        assert_eq!(
            cgroups.path(),
            Some("/user.slice/user-1000.slice/session-3.scope")
        );
        assert!(cgroups.legacy.is_empty());
    }

    #[test]
    fn version_1_prefers_the_memory_controller() {
        let cgroups = parse(b"9:cpu,cpuacct:/cpu\n4:memory:/docker/ab:c\n1:name=systemd:/init.scope\n");
        assert_eq!(cgroups.path(), Some("/docker/ab:c"));
        assert_eq!(
            cgroups.legacy[0],
            (vec!["cpu".to_owned(), "cpuacct".to_owned()], "/cpu".to_owned())
        );
        assert_eq!(
            parse(b"9:cpu:/cpu\n1:name=systemd:/init.scope\n").path(),
            Some("/init.scope")
        );
        assert_eq!(parse(b"9:cpu:/cpu\n").path(), Some("/cpu"));
    }

    #[test]
    fn a_mixed_host_with_an_empty_version_2_falls_back_to_version_1() {
        assert_eq!(parse(b"4:memory:/a\n0::/\n").path(), Some("/a"));
        assert_eq!(parse(b"4:memory:/a\n0::/b\n").path(), Some("/b"));
        assert_eq!(parse(b"4:memory:/\n3:pids:/\n0::/\n").path(), Some("/"));
        assert_eq!(parse(b"").path(), None);
    }

    #[test]
    fn a_removed_group_keeps_its_name() {
        assert_eq!(parse(b"0::/job.scope (deleted)\n").path(), Some("/job.scope"));
    }

    #[test]
    fn the_own_process_is_in_a_group_whose_path_is_absolute() {
        // A kernel without control groups has no such file.
        if let Ok(bytes) = std::fs::read("/proc/self/cgroup") {
            assert!(parse(&bytes).path().unwrap().starts_with('/'));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes).path();
        }
    }
}
