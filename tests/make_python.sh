#!/bin/sh
# Makes a CPython of a kind that no package has, to try memwatch on it. `docs/python.md` has what was seen with each.
#
#   tests/make_python.sh KIND SOURCE PLACE
#
# SOURCE is an unpacked source tree of CPython (such as of Debian's python3.13 package); it is copied. PLACE is made, with
# the build in `PLACE/build` and the interpreter installed in `PLACE/bin`. KIND is one of
#
#   free-threaded  GCC, --disable-gil, no profile (3.13 and later)
#   standalone     as python-build-standalone makes them: clang, profile, ThinLTO, BOLT, all modules in one executable, and
#                  with the interpreter that calls its tail from 3.14 on. Two more executables beside it are as before BOLT,
#                  and stripped. With PROFILE=no in a third of the time
#   tail-call      clang, no profile, no LTO, --with-tail-call-interp (3.14 and later)
#   musl           GCC with musl's libc (musl-gcc), linked dynamically
#   musl-static    the same as one static executable with all modules in it
#
# Packages of Debian: build-essential, zlib1g-dev, libffi-dev; for standalone and tail-call clang-19, lld-19, llvm-19,
# bolt-19, libclang-rt-19-dev; for musl musl-tools. JOBS (2) is how many compilers run at a time. The profile is short: some
# of CPython's own tests, not all.
set -eu

usage() {
    sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
[ $# -eq 3 ] || usage
kind=$1
place=$3
jobs=${JOBS:-2}
llvm=/usr/lib/llvm-19/bin
mkdir -p "$place"
place=$(cd "$place" && pwd)
rm -rf "$place/build"
cp -r "$2" "$place/build"
cd "$place/build"

# What memwatch looks at is the interpreter: modules that need other libraries, and those for tests, are left out.
cat > Modules/Setup.local <<'LIST'
*disabled*
_testcapi _testlimitedcapi _testclinic _testclinic_limited _testinternalcapi _testbuffer _testimportmultiple
_testmultiphase _testsinglephase _testexternalinspection _ctypes_test xxlimited xxlimited_35 xxsubtype _xxtestfuzz
_codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw _multibytecodec
_sqlite3 _tkinter _dbm _gdbm _curses _curses_panel readline _ssl _hashlib _decimal _uuid
LIST

configure() {
    ./configure --prefix="$place" --without-ensurepip "$@" > configure.log 2>&1 ||
        { tail -5 configure.log >&2; exit 1; }
}
make_all() {
    nice -n 10 make -j"$jobs" "$@" > make.log 2>&1 || { tail -20 make.log >&2; exit 1; }
}
install() {
    nice -n 10 make install "$@" > install.log 2>&1 || { tail -20 install.log >&2; exit 1; }
}

case $kind in
free-threaded)
    configure --disable-gil
    make_all
    install
    ;;
tail-call)
    CC=clang-19 configure --with-tail-call-interp
    make_all
    install
    ;;
musl | musl-static)
    # musl-gcc says that it makes programs for glibc.
    printf '#!/bin/sh\n[ "$1" = --print-multiarch ] && exec echo x86_64-linux-musl\nexec musl-gcc "$@"\n' > "$place/cc"
    chmod +x "$place/cc"
    # The kernel's headers stand beside glibc's.
    mkdir -p "$place/include-linux"
    for headers in linux asm-generic; do ln -sfn /usr/include/$headers "$place/include-linux/$headers"; done
    ln -sfn /usr/include/x86_64-linux-gnu/asm "$place/include-linux/asm"
    if [ "$kind" = musl-static ]; then
        export MODULE_BUILDTYPE=static LDFLAGS=-static
    fi
    # None of the libraries that pkg-config knows is for musl.
    CC="$place/cc" CFLAGS="-idirafter $place/include-linux" configure PKG_CONFIG=/bin/false
    make_all
    install
    ;;
standalone)
    version=$(sed -n 's/^PACKAGE_VERSION=.\([0-9.]*\).$/\1/p' configure)
    case $version in
    3.8 | 3.9 | 3.1[0-3]) interpreter= ;;
    *) interpreter=--with-tail-call-interp ;;
    esac
    profile=--enable-optimizations
    [ "${PROFILE:-yes}" = yes ] || profile=
    # One link after another makes the same code: programs that only the build and the tests need have the interpreter in
    # them too.
    export LDFLAGS="-fuse-ld=lld -Wl,--thinlto-cache-dir=$place/lto-cache"
    # Also for versions whose `configure` knows no way to have all modules in the executable.
    export PATH="$llvm:$PATH" CFLAGS="-fPIC" CC=clang MODULE_BUILDTYPE=static
    configure ac_cv_prog_cc_g=no --with-lto=thin --enable-bolt $profile $interpreter
    tests='test_list test_dict test_set test_tuple test_generators test_json test_re test_asyncgen'
    make_all PROFILE_TASK="-m test --pgo --timeout 300 $tests"
    install
    # The steps on its way: as linked, and as it is given to users.
    name=python$version
    cp python.prebolt "$place/bin/$name-before-bolt"
    strip -o "$place/bin/$name-stripped" "$place/bin/$name"
    ;;
*)
    usage
    ;;
esac
echo "$place/bin"
