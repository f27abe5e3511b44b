//! What lies at which address of a process: all that was ever seen there, the newest on top.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::target::maps::{Device, Mapping};

/// What identifies a mapped file. Two files never share it as long as one of them is held open.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileKey {
    pub device: Device,
    pub inode: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    File {
        key: FileKey,
        path: Arc<str>,
    },
    Vdso,
    /// Code that no file holds, with the kernel's name for it if there is one.
    Anonymous(Option<Arc<str>>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    pub start: u64,
    pub end: u64,
    /// Where in the file the region starts.
    pub offset: u64,
    pub content: Content,
}

/// The executable memory of a process.
#[derive(Clone, Debug, Default)]
pub struct AddressSpace {
    regions: BTreeMap<u64, Region>,
    vdso: Option<u64>,
}

impl AddressSpace {
    /// Takes in the mappings as they are now. What is gone stays known until something else lies there, for
    /// stacks that were taken before. False if these are the mappings of another program: the kernel puts the
    /// vDSO elsewhere at each exec.
    pub fn update(&mut self, mappings: &[Mapping]) -> bool {
        let vdso = mappings
            .iter()
            .find(|mapping| mapping.is_vdso())
            .map(|mapping| mapping.start);
        if self.vdso.is_some() && vdso != self.vdso {
            return false;
        }
        self.vdso = vdso;
        let code = mappings
            .iter()
            .filter(|mapping| mapping.perms.executable() && !mapping.is_empty());
        for mapping in code {
            self.put(region(mapping));
        }
        true
    }

    pub fn find(&self, address: u64) -> Option<&Region> {
        let (_, region) = self.regions.range(..=address).next_back()?;
        (address < region.end).then_some(region)
    }

    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        self.regions.values()
    }

    fn put(&mut self, new: Region) {
        if self.regions.get(&new.start) == Some(&new) {
            return;
        }
        let before = self
            .regions
            .range(..new.start)
            .next_back()
            .filter(|(_, old)| old.end > new.start);
        let under = before.into_iter().chain(self.regions.range(new.start..new.end));
        let under: Vec<Region> = under.map(|(_, region)| region.clone()).collect();
        for old in under {
            self.regions.remove(&old.start);
            if old.start < new.start {
                self.regions.insert(
                    old.start,
                    Region {
                        end: new.start,
                        ..old.clone()
                    },
                );
            }
            if old.end > new.end {
                let offset = old.offset + (new.end - old.start);
                self.regions.insert(
                    new.end,
                    Region {
                        start: new.end,
                        offset,
                        ..old
                    },
                );
            }
        }
        self.regions.insert(new.start, new);
    }
}

fn region(mapping: &Mapping) -> Region {
    // A path that is no text is good enough to read by; the file is opened by its address.
    let name = mapping
        .path
        .as_ref()
        .map(|path| Arc::from(path.to_string_lossy()));
    let content = match name {
        _ if mapping.is_vdso() => Content::Vdso,
        Some(path) if mapping.file().is_some() => Content::File {
            key: FileKey {
                device: mapping.device,
                inode: mapping.inode,
            },
            path,
        },
        name => Content::Anonymous(name),
    };
    Region {
        start: mapping.start,
        end: mapping.end,
        offset: mapping.offset,
        content,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::maps;

    fn space(text: &str) -> AddressSpace {
        let mut space = AddressSpace::default();
        assert!(space.update(&maps::parse(text.as_bytes()).unwrap()));
        space
    }

    fn path_at(space: &AddressSpace, address: u64) -> Option<(String, u64)> {
        let region = space.find(address)?;
        let Content::File { path, .. } = &region.content else {
            return None;
        };
        Some((path.to_string(), address - region.start + region.offset))
    }

    const FIRST: &str = "\
1000-5000 r-xp 00002000 08:01 10 /lib/a.so
8000-9000 rw-p 00000000 08:01 10 /lib/a.so
f000-10000 r-xp 00000000 00:00 0 [vdso]
";

    #[test]
    fn addresses_become_places_in_files() {
        let space = space(FIRST);
        assert_eq!(path_at(&space, 0x1234), Some(("/lib/a.so".into(), 0x2234)));
        assert_eq!(path_at(&space, 0x5000), None);
        assert_eq!(path_at(&space, 0xfff), None);
        assert_eq!(path_at(&space, 0x8100), None);
        assert_eq!(space.find(0xf010).unwrap().content, Content::Vdso);
    }

    #[test]
    fn what_was_unmapped_stays_known_until_something_else_lies_there() {
        let mut space = space(FIRST);
        space.update(
            &maps::parse(b"2000-3000 r-xp 00000000 08:01 20 /lib/b.so\nf000-10000 r-xp 0 00:00 0 [vdso]\n")
                .unwrap(),
        );
        assert_eq!(path_at(&space, 0x1fff), Some(("/lib/a.so".into(), 0x2fff)));
        assert_eq!(path_at(&space, 0x2000), Some(("/lib/b.so".into(), 0)));
        assert_eq!(path_at(&space, 0x3000), Some(("/lib/a.so".into(), 0x4000)));
        assert_eq!(path_at(&space, 0x4fff), Some(("/lib/a.so".into(), 0x5fff)));
    }

    #[test]
    fn the_mappings_of_another_program_are_refused() {
        let mut space = space(FIRST);
        assert!(!space.update(
            &maps::parse(b"1000-5000 r-xp 0 08:01 20 /bin/b\ne000-f000 r-xp 0 00:00 0 [vdso]\n").unwrap()
        ));
        assert!(!space.update(&[]));
        assert_eq!(path_at(&space, 0x1234), Some(("/lib/a.so".into(), 0x2234)));
    }

    #[test]
    fn code_without_a_file_keeps_the_kernels_name() {
        let space = space("1000-2000 rwxp 0 00:00 0 [anon:JIT]\n3000-4000 rwxp 0 00:00 0 \n");
        assert_eq!(
            space.find(0x1000).unwrap().content,
            Content::Anonymous(Some("[anon:JIT]".into()))
        );
        assert_eq!(space.find(0x3000).unwrap().content, Content::Anonymous(None));
    }
}
