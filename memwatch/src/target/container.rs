//! Which container a process is in, as far as the name of its control group tells.

use crate::model::report::Container;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guess {
    /// Who made the container: `docker`, `containerd`, `cri-o`, `podman`, `lxc`, `nspawn`. Paths of plain
    /// Kubernetes do not tell.
    pub engine: Option<&'static str>,
    pub id: String,
    /// LXC and nspawn have names in place of ids.
    pub name: Option<String>,
    /// The uid of the Kubernetes pod around it.
    pub pod_uid: Option<String>,
}

impl From<Guess> for Container {
    fn from(guess: Guess) -> Self {
        Self {
            id: guess.id,
            name: guess.name,
            image: None,
        }
    }
}

/// What comes before the id in the name of a systemd scope.
const SCOPES: [(&str, &str); 5] = [
    ("docker-", "docker"),
    ("cri-containerd-", "containerd"),
    ("nerdctl-", "containerd"),
    ("crio-", "cri-o"),
    ("libpod-", "podman"),
];

/// From the path of a control group. Containers in containers (kind, docker in docker): the innermost.
pub fn guess(cgroup: &str) -> Option<Guess> {
    let parts: Vec<&str> = cgroup.split('/').filter(|part| !part.is_empty()).collect();
    let mut found = (0..parts.len()).rev().find_map(|at| part(&parts, at))?;
    found.pod_uid = pod_uid(cgroup);
    Some(found)
}

/// The uid of the Kubernetes pod that the control group belongs to; also for the pod's own group, which holds
/// no container.
pub fn pod_uid(cgroup: &str) -> Option<String> {
    cgroup
        .rsplit('/')
        .filter(|part| !part.is_empty())
        .find_map(|part| {
            // `kubepods-burstable-pod<uid>.slice:cri-containerd:<id>` is how containerd writes it without systemd.
            let part = part.split(':').next().unwrap_or(part);
            let part = part.strip_suffix(".slice").unwrap_or(part);
            let uid = match part.rsplit_once("-pod") {
                Some((quality, uid)) if quality.starts_with("kubepods") => uid,
                _ => part.strip_prefix("pod")?,
            };
            let hex = uid.bytes().filter(u8::is_ascii_hexdigit).count();
            let dashes = uid.bytes().filter(|byte| matches!(byte, b'-' | b'_')).count();
            // systemd gives `-` in a name a meaning, so it stands as `_` there.
            (hex == 32 && hex + dashes == uid.len()).then(|| uid.replace('_', "-"))
        })
}

fn part(parts: &[&str], at: usize) -> Option<Guess> {
    let part = parts[at];
    let before = at.checked_sub(1).map(|at| parts[at]);
    let named = |engine, id: &str| Guess {
        engine,
        id: id.to_owned(),
        ..Guess::default()
    };
    if let Some(scope) = part.strip_suffix(".scope") {
        return scope_guess(scope);
    }
    // podman without systemd
    if let Some(id) = part.strip_prefix("libpod-").filter(|id| is_id(id)) {
        return Some(named(Some("podman"), id));
    }
    let mut colons = part.rsplit(':');
    if let (Some(id), Some(engine)) = (colons.next(), colons.next())
        && is_id(id)
    {
        let engine = match engine {
            "cri-containerd" => Some("containerd"),
            "docker" => Some("docker"),
            "crio" => Some("cri-o"),
            _ => None,
        };
        return Some(named(engine, id));
    }
    let lxc = part
        .strip_prefix("lxc.payload.")
        .or_else(|| (before == Some("lxc")).then_some(part));
    if let Some(name) = lxc.filter(|name| !name.is_empty()) {
        return Some(Guess {
            name: Some(name.to_owned()),
            ..named(Some("lxc"), name)
        });
    }
    if part.len() == 64 && is_id(part) {
        return Some(named((before == Some("docker")).then_some("docker"), part));
    }
    // Amazon ECS: `/ecs/TASK/TASK-NUMBER`
    let (task, number) = part.split_once('-')?;
    let ecs = parts[..at].contains(&"ecs") && task.len() == 32 && is_id(task);
    (ecs && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then(|| named(None, part))
}

fn scope_guess(scope: &str) -> Option<Guess> {
    for (prefix, engine) in SCOPES {
        if let Some(id) = scope.strip_prefix(prefix).filter(|id| is_id(id)) {
            return Some(Guess {
                engine: Some(engine),
                id: id.to_owned(),
                ..Guess::default()
            });
        }
    }
    let name = scope.strip_prefix("machine-").filter(|name| !name.is_empty())?;
    // systemd writes what may not stand in a unit's name as `\x2d`; that one is the only common case.
    let name = name.replace("\\x2d", "-");
    Some(Guess {
        engine: Some("nspawn"),
        id: name.clone(),
        name: Some(name),
        pod_uid: None,
    })
}

fn is_id(text: &str) -> bool {
    (12..=64).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "3f4e8c0f2b6a4d5e8f7a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6";
    const OTHER: &str = "0000000000000000000000000000000000000000000000000000000000000abc";
    const POD: &str = "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0";

    fn check(path: &str, engine: Option<&str>, pod: Option<&str>) {
        let path = path.replace("ID", ID).replace("OTHER", OTHER).replace("POD", POD);
        let found = guess(&path.replace("P_D", &POD.replace('-', "_"))).unwrap_or_else(|| panic!("{path}"));
        assert_eq!(
            (found.id.as_str(), found.engine, found.pod_uid.as_deref()),
            (ID, engine, pod),
            "{path}"
        );
    }

    #[test]
    fn the_engines_ways_of_naming_are_known() {
        check("/system.slice/docker-ID.scope", Some("docker"), None);
        check("/docker/ID", Some("docker"), None);
        check("/../ID", None, None);
        check("/machine.slice/libpod-ID.scope", Some("podman"), None);
        check("/machine.slice/libpod-ID.scope/container", Some("podman"), None);
        check("/libpod_parent/libpod-ID", Some("podman"), None);
        check("/kubepods/burstable/podPOD/ID", None, Some(POD));
        check("/kubepods/podPOD/ID", None, Some(POD));
        check(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podP_D.slice/cri-containerd-ID.scope",
            Some("containerd"),
            Some(POD),
        );
        check(
            "/kubepods.slice/kubepods-podP_D.slice/crio-ID.scope",
            Some("cri-o"),
            Some(POD),
        );
        check(
            "/system.slice/containerd.service/kubepods-besteffort-podP_D.slice:cri-containerd:ID",
            Some("containerd"),
            Some(POD),
        );
    }

    #[test]
    fn the_innermost_of_nested_containers_counts() {
        check("/docker/OTHER/kubelet/kubepods/podPOD/ID", None, Some(POD));
        check("/docker/ID/system.slice/nginx.service", Some("docker"), None);
    }

    #[test]
    fn containers_with_names() {
        for (path, name, engine) in [
            ("/lxc.payload.web/system.slice/x.service", "web", "lxc"),
            ("/lxc/web", "web", "lxc"),
            (
                "/machine.slice/machine-my\\x2dbox.scope/payload",
                "my-box",
                "nspawn",
            ),
        ] {
            let found = guess(path).unwrap();
            assert_eq!(
                (found.id.as_str(), found.name.as_deref()),
                (name, Some(name)),
                "{path}"
            );
            assert_eq!(found.engine, Some(engine));
        }
    }

    #[test]
    fn amazon_tasks_have_their_own_form() {
        let id = "0123456789abcdef0123456789abcdef-1234567890";
        assert_eq!(
            guess(&format!("/ecs/0123456789abcdef0123456789abcdef/{id}"))
                .unwrap()
                .id,
            id
        );
        assert_eq!(guess(&format!("/other/{id}")), None);
    }

    #[test]
    fn what_is_no_container_is_none() {
        for path in [
            "/",
            "",
            "/user.slice/user-1000.slice/session-3.scope",
            "/system.slice/docker.service",
            "/system.slice/ssh.service",
            "/init.scope",
            "/machine.slice/machine-.scope",
            "/docker",
            "/docker/short",
            "/kubepods/burstable/pod0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0",
        ] {
            assert_eq!(guess(path), None, "{path}");
        }
        // The process that watches over a container is not in it.
        assert_eq!(guess(&format!("/machine.slice/libpod-conmon-{ID}.scope")), None);
        assert_eq!(guess(&format!("/system.slice/crio-conmon-{ID}.scope")), None);
    }

    #[test]
    fn a_pod_is_found_without_a_container() {
        assert_eq!(
            pod_uid(&format!("/kubepods/besteffort/pod{POD}")).as_deref(),
            Some(POD)
        );
        // Static pods have a hash in place of a uid.
        let hash = "0123456789abcdef0123456789abcdef";
        assert_eq!(pod_uid(&format!("/kubepods/pod{hash}")).as_deref(), Some(hash));
        assert_eq!(pod_uid("/system.slice/podman.service"), None);
        assert_eq!(pod_uid("/kubepods.slice"), None);
    }

    #[test]
    fn a_guess_becomes_the_reports_container() {
        let container = Container::from(guess(&format!("/docker/{ID}")).unwrap());
        assert_eq!(
            container,
            Container {
                id: ID.to_owned(),
                name: None,
                image: None
            }
        );
    }

    proptest! {
        #[test]
        fn no_path_makes_it_panic(path in "[/a-f0-9:.é-]{0,80}(pod|lxc|docker-|.scope|.slice)?[/a-f0-9]{0,70}") {
            let _ = (guess(&path), pod_uid(&path));
        }
    }
}
