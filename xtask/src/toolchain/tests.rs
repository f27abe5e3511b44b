use super::*;

const DEBIAN: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
    host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
const NIGHTLY: &str =
    "rustc 1.97.0-nightly (1234 2026-05-19)\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
const OLDEST: Version = Version { major: 1, minor: 95 };

fn facts(text: &str) -> Facts {
    Facts {
        compiler: Compiler::parse(text),
        cargo: true,
        core_sources: true,
    }
}

#[test]
fn a_compiler_tells_its_versions() {
    let debian = Compiler::parse(DEBIAN).unwrap();
    assert_eq!(
        debian,
        Compiler {
            version: Version { major: 1, minor: 96 },
            nightly: false,
            llvm: Some(22)
        }
    );
    assert!(Compiler::parse(NIGHTLY).unwrap().nightly);
    assert_eq!(Compiler::parse("bash: rustc: command not found"), None);
    assert_eq!(Compiler::parse("release: soon\n"), None);
    assert_eq!(Compiler::parse("release: 1.96.0\n").unwrap().llvm, None);
}

#[test]
fn stable_and_nightly_with_sources_are_fit() {
    assert!(judge(facts(DEBIAN), OLDEST, Some(22)).is_ok());
    assert!(judge(facts(NIGHTLY), OLDEST, None).is_ok());
}

#[test]
fn each_lack_has_its_own_reason() {
    let why = |facts, oldest, linker| judge(facts, oldest, linker).unwrap_err().to_string();
    let good = facts(NIGHTLY);
    assert!(
        why(
            Facts {
                core_sources: false,
                ..good
            },
            OLDEST,
            None
        )
        .contains("rust-src")
    );
    assert!(why(Facts { cargo: false, ..good }, OLDEST, None).contains("cargo"));
    assert!(
        why(
            Facts {
                compiler: None,
                ..good
            },
            OLDEST,
            None
        )
        .contains("rustc")
    );
    assert!(why(good, Version { major: 1, minor: 98 }, None).contains("1.97, older than 1.98"));
    assert!(why(good, OLDEST, Some(21)).contains("LLVM 22 is newer than bpf-linker's LLVM 21"));
}

#[test]
fn versions_compare_as_numbers() {
    assert!(Version::parse("1.100.0").unwrap() > Version::parse("1.95").unwrap());
    assert!(Version::parse("2.0").unwrap() > Version::parse("1.100").unwrap());
    assert_eq!(Version::parse("one"), None);
}

#[test]
fn the_linkers_llvm_is_read_from_its_libraries() {
    assert_eq!(linked_llvm(b"\0libc.so.6\0libLLVM.so.22.1\0"), Some(22));
    assert_eq!(linked_llvm(b"\0libLLVM-21.so.1\0"), Some(21));
    assert_eq!(linked_llvm(b"libLLVM.so.\0 then libLLVM.so.23.1"), Some(23));
    assert_eq!(linked_llvm(b"\0libc.so.6\0"), None);
    assert_eq!(linked_llvm(b"libLLVM.so."), None);
    assert_eq!(linked_llvm(b""), None);
}

#[test]
fn nightlies_come_newest_first_and_stable_ones_not_at_all() {
    let home = std::env::temp_dir().join(format!("memwatch-toolchain-test-{}", std::process::id()));
    for name in [
        "nightly-2026-01-02-x",
        "stable-x",
        "nightly-x86_64-unknown-linux-gnu",
        "nightly-2026-03-01-x",
    ] {
        fs::create_dir_all(home.join("toolchains").join(name)).unwrap();
    }
    let around = Surroundings {
        rustup_home: Some(home.clone()),
        ..Surroundings::default()
    };
    let names: Vec<String> = nightlies(&around)
        .into_iter()
        .map(|candidate| candidate.called)
        .collect();
    fs::remove_dir_all(&home).unwrap();
    assert_eq!(
        names,
        [
            "nightly-x86_64-unknown-linux-gnu",
            "nightly-2026-03-01-x",
            "nightly-2026-01-02-x"
        ]
        .map(|name| format!("rustup's {name}"))
    );
}

#[test]
fn a_choice_rules_out_all_others() {
    let around = Surroundings {
        choice: Some("/opt/rust".into()),
        ..Surroundings::default()
    };
    let all = candidates(&around);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].sysroot, Path::new("/opt/rust"));
}

#[test]
fn nothing_found_is_one_line_that_names_each_lack() {
    let around = Surroundings {
        choice: Some("/nonexistent".into()),
        ..Surroundings::default()
    };
    let message = find(&around, OLDEST).unwrap_err().to_string();
    assert!(
        message.contains("bpf-linker") && message.contains("/nonexistent: no working bin/rustc"),
        "{message}"
    );
    assert!(!message.contains('\n'));
}

#[test]
fn a_program_is_found_where_cargo_installs_it() {
    let home = std::env::temp_dir().join(format!("memwatch-program-test-{}", std::process::id()));
    fs::create_dir_all(home.join(".cargo/bin")).unwrap();
    fs::write(home.join(".cargo/bin/some-linker"), "").unwrap();
    let around = Surroundings {
        home: Some(home.clone()),
        path: Some("/nonexistent".into()),
        ..Surroundings::default()
    };
    let found = around.program("some-linker");
    fs::remove_dir_all(&home).unwrap();
    assert_eq!(found, Some(home.join(".cargo/bin/some-linker")));
}
