use proptest::prelude::*;

use super::*;
use crate::target::{
    fake::{FakeProc, Kind, maps_line},
    go_build::tests::{elf, info},
    modules::Catalog,
};

fn names(exe: &str, files: &[&str]) -> Vec<String> {
    let found = detect(Some(Path::new(exe)), files.iter().map(Path::new), None);
    found
        .into_iter()
        .map(|runtime| match runtime.version {
            Some(version) => format!("{} {version}", runtime.name),
            None => runtime.name,
        })
        .collect()
}

#[test]
fn python_by_library_by_program_and_by_extension() {
    assert_eq!(
        names(
            "/usr/bin/python3.11",
            &["/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0"]
        ),
        ["cpython 3.11"]
    );
    assert_eq!(names("/usr/bin/python3.9", &[]), ["cpython 3.9"]);
    assert_eq!(names("/usr/bin/python3.13t", &[]), ["cpython 3.13"]);
    assert_eq!(names("/opt/p/bin/python3", &[]), ["cpython"]);
    let extension = "/opt/p/lib/_ssl.cpython-312-x86_64-linux-gnu.so";
    assert_eq!(names("/opt/p/bin/python3", &[extension]), ["cpython 3.12"]);
    assert_eq!(
        names("/usr/sbin/uwsgi", &["/usr/lib/libpython3.10d.so"]),
        ["cpython 3.10"]
    );
    assert_eq!(names("/x", &["/usr/lib/libpython3.so"]), ["cpython"]);
    assert_eq!(
        names("/opt/pypy/bin/pypy3.9", &["/opt/pypy/bin/libpypy3.9-c.so"]),
        ["pypy 3.9"]
    );
}

#[test]
fn other_languages() {
    assert_eq!(
        names(
            "/x/java",
            &["/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so"]
        ),
        ["java 17"]
    );
    assert_eq!(
        names("/x/java", &["/opt/jdk-21.0.2+13/lib/server/libjvm.so"]),
        ["java 21.0.2"]
    );
    assert_eq!(
        names("/x/java", &["/opt/jdk1.8.0_292/jre/lib/amd64/server/libjvm.so"]),
        ["java 1.8.0_292"]
    );
    assert_eq!(
        names("/x/java", &["/home/java2go/app/lib/server/libjvm.so"]),
        ["java"]
    );
    assert_eq!(names("/usr/bin/node", &[]), ["node"]);
    assert_eq!(names("/usr/bin/node", &["/usr/lib/libnode.so.108"]), ["node"]);
    assert_eq!(
        names("/home/me/.nvm/versions/node/v20.11.0/bin/node", &[]),
        ["node 20.11.0"]
    );
    assert_eq!(
        names("/opt/node-v18.1.0-linux-x64/bin/node", &[]),
        ["node 18.1.0"]
    );
    assert_eq!(names("/srv/v2/bin/node", &[]), ["node"]);
    let dotnet = "/usr/share/dotnet/shared/Microsoft.NETCore.App/8.0.1/libcoreclr.so";
    assert_eq!(names("/usr/share/dotnet/dotnet", &[dotnet]), ["dotnet 8.0.1"]);
    assert_eq!(
        names("/usr/bin/ruby3.1", &["/usr/lib/libruby-3.1.so.3.1.2"]),
        ["ruby 3.1"]
    );
    assert_eq!(names("/app", &["/usr/lib/libruby.so.3.2"]), ["ruby 3.2"]);
    assert_eq!(names("/usr/sbin/php-fpm8.2", &[]), ["php 8.2"]);
    assert_eq!(
        names("/usr/bin/perl", &["/usr/lib/libperl.so.5.36"]),
        ["perl 5.36"]
    );
    assert_eq!(names("/usr/lib/erlang/erts-13/bin/beam.smp", &[]), ["erlang"]);
    assert_eq!(names("/app", &["/usr/lib/liblua5.4.so.0"]), ["lua 5.4"]);
}

#[test]
fn c_libraries_and_allocators_come_last() {
    assert_eq!(
        names(
            "/app",
            &[
                "/lib/libc.so.6",
                "/usr/lib/libjemalloc.so.2",
                "/usr/lib/libpython3.11.so.1.0"
            ]
        ),
        ["cpython 3.11", "glibc", "jemalloc"]
    );
    assert_eq!(
        names("/app", &["/lib/x86_64-linux-gnu/libc-2.31.so"]),
        ["glibc 2.31"]
    );
    assert_eq!(
        names(
            "/app",
            &["/lib/ld-musl-x86_64.so.1", "/lib/libc.musl-x86_64.so.1"]
        ),
        ["musl"]
    );
    assert_eq!(
        names("/app", &["/usr/lib/libtcmalloc_minimal.so.4"]),
        ["tcmalloc"]
    );
    assert_eq!(names("/app", &["/usr/lib/libmimalloc.so.2.1"]), ["mimalloc 2.1"]);
    assert_eq!(
        names("/app", &["/usr/lib/libmimalloc-secure.so.2"]),
        ["mimalloc 2"]
    );
    assert_eq!(
        names("/app", &["/opt/libclang_rt.scudo_standalone-x86_64.so"]),
        ["scudo"]
    );
}

#[test]
fn names_that_only_begin_alike_are_not_taken() {
    for exe in [
        "/usr/bin/nodemon",
        "/x/python-build",
        "/x/pythonista",
        "/x/perldoc",
        "/x/bunzip2",
        "/x/php-cs",
    ] {
        assert!(names(exe, &[]).is_empty(), "{exe}");
    }
    for file in [
        "/x/librubyfoo.so",
        "/x/liblualatex.so",
        "/x/libc.so.60",
        "/x/libpython3.11.txt",
        "/x/libcap.so.2",
    ] {
        assert!(names("/app", &[file]).is_empty(), "{file}");
    }
}

#[test]
fn nothing_known_is_an_empty_list() {
    assert_eq!(detect(None, [], None), []);
}

#[test]
fn a_go_program_is_recognised_by_what_is_in_it() {
    let proc = FakeProc::new();
    let go = proc.outside("box", "/app", &elf(".go.buildinfo", &info(2, "go1.22.3")));
    let libc = proc.outside("box", "/lib/libc.so.6", b"");
    let maps = maps_line("1000-2000", "r-xp", 0, &go, "/app")
        + &maps_line("2000-3000", "r-xp", 0, &libc, "/lib/libc.so.6");
    proc.process(5, "app", Kind::User)
        .exe(5, "/app")
        .file("5/maps", maps);
    proc.link("5/root", proc.outside_dir("box"));
    let modules = Catalog::new(proc.root()).read(5).unwrap();
    let mut runtimes = Runtimes::default();
    let expected = [
        Runtime {
            name: "go".to_owned(),
            version: Some("1.22.3".to_owned()),
        },
        Runtime {
            name: "glibc".to_owned(),
            version: None,
        },
    ];
    assert_eq!(runtimes.of(Some(Path::new("/app")), &modules), expected);
    // The file is not opened again.
    std::fs::remove_file(go).unwrap();
    assert_eq!(runtimes.of(Some(Path::new("/app")), &modules), expected);
    assert_eq!(runtimes.of(None, &modules), expected[1..]);
}

#[test]
fn the_own_process_has_a_c_library_and_no_language_runtime() {
    let own = std::env::current_exe().unwrap();
    let modules = Catalog::default().read(std::process::id()).unwrap();
    let found = Runtimes::default().of(Some(&own), &modules);
    let names: Vec<_> = found.iter().map(|runtime| runtime.name.as_str()).collect();
    assert!(matches!(names.as_slice(), ["glibc" | "musl"] | []), "{names:?}");
}

proptest! {
    #[test]
    fn no_name_makes_it_panic(path in "/(lib|python|libpython|libc-|x.cpython-|libruby|node)?.{0,20}", dir in "/(jdk|v|node-v)?.{0,20}") {
        let path = format!("{dir}{path}");
        let _ = names(&path, &[&path]);
    }
}
