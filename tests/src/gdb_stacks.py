# Runs inside gdb, attached to one process: stops it at the entry of allocation functions and writes the stack of the
# thread that called, as gdb unwinds it: one JSON array a line, innermost first, a frame being [module, address in the
# module's file as its program headers count]. Frames that gdb makes up for inlined functions and for functions
# that ended in a jump are not on the stack and are left out.
import json
import os
import random
import struct
import time

import gdb

STOPS = int(os.environ["STACKS_STOPS"])
OUTPUT = os.environ["STACKS_OUTPUT"]
FUNCTIONS = ["malloc", "calloc", "realloc", "memalign", "aligned_alloc", "posix_memalign"]

pid = gdb.selected_inferior().pid
segments = {}
mappings = []


def read_segments(path):
    """[(offset, size, address)] of the code in an ELF file. Other parts may show the same bytes of it elsewhere."""
    try:
        with open("/proc/%d/root%s" % (pid, path), "rb") as file:
            header = file.read(64)
            if header[:4] != b"\x7fELF":
                return []
            (table,) = struct.unpack_from("<Q", header, 32)
            size, count = struct.unpack_from("<HH", header, 54)
            file.seek(table)
            entries = file.read(size * count)
    except OSError:
        return []
    found = []
    for n in range(count):
        kind, flags, offset, address, _, file_bytes = struct.unpack_from("<IIQQQQ", entries, n * size)
        if kind == 1 and flags & 1:
            found.append((offset, file_bytes, address))
    return found


def read_mappings():
    mappings.clear()
    with open("/proc/%d/maps" % pid) as file:
        for line in file:
            words = line.split(None, 5)
            start, end = (int(word, 16) for word in words[0].split("-"))
            name = words[5].strip() if len(words) > 5 else ""
            if "x" in words[1]:
                mappings.append((start, end, int(words[2], 16), name))


def place(pc):
    """Where code stands in its file; its address, if it is of no file; None if it is no code."""
    if not any(start <= pc < end for start, end, _, _ in mappings):
        read_mappings()
    for start, end, offset, name in mappings:
        if start <= pc < end:
            if name == "[vdso]":
                return [name, pc - start]
            if name not in segments:
                segments[name] = read_segments(name) if name.startswith("/") else []
            at = pc - start + offset
            for first, size, address in segments[name]:
                # Mappings are whole pages, segments need not be.
                if first & ~4095 <= at < (first + size + 4095) & ~4095:
                    return [name, at - first + address]
            return ["", pc]
    return None


def entries():
    """The allocation functions' first addresses, in every file but the dynamic linker."""
    found = set()
    for function in FUNCTIONS:
        try:
            probe = gdb.Breakpoint("-qualified " + function, internal=True)
        except gdb.error:
            continue
        for location in probe.locations:
            symbol = gdb.execute("info symbol %d" % location.address, to_string=True)
            if "ld-linux" in symbol or "ld-musl" in symbol:
                continue
            words = symbol.split()
            offset = int(words[2]) if len(words) > 2 and words[1] == "+" else 0
            found.add(location.address - offset)
        probe.delete()
    return found


def stack():
    """The frames; and whether the last is where a thread begins."""
    places = []
    frame = gdb.newest_frame()
    while frame is not None:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            here = place(frame.pc())
            if here is None:
                return places, False
            places.append(here)
            # What V8 made, now or when node was built, keeps frame pointers. gdb does not know, and guesses from here.
            if here[0] == "" or (frame.name() or "").startswith("Builtins_"):
                return places, False
        last = frame
        frame = frame.older()
    reason = last.unwind_stop_reason()
    return places, reason in (gdb.FRAME_UNWIND_NO_REASON, gdb.FRAME_UNWIND_OUTERMOST)


def wait_until_free(addresses):
    """The kernel takes a probe out some time after its owner has ended. gdb would wait for ever on top of one."""
    inferior = gdb.selected_inferior()
    for _ in range(600):
        if all(bytes(inferior.read_memory(address, 1)) != b"\xcc" for address in addresses):
            return
        time.sleep(0.05)
    raise gdb.GdbError("another tool has probes on the allocation functions")


def main():
    for setting in ("pagination off", "confirm off", "backtrace past-main on", "backtrace limit unlimited", "code-cache off"):
        gdb.execute("set " + setting)
    gdb.execute("handle all nostop noprint pass", to_string=True)
    gdb.execute("handle SIGTRAP stop nopass", to_string=True)
    addresses = sorted(entries())
    wait_until_free(addresses)
    breakpoints = [gdb.Breakpoint("*%d" % address) for address in addresses]
    random.seed(1)
    with open(OUTPUT, "w") as output:
        for _ in range(STOPS):
            # At varied places: a loop of a fixed number of allocations is not met at the same one for ever.
            for breakpoint in breakpoints:
                breakpoint.ignore_count = random.randrange(8)
            gdb.execute("continue", to_string=True)
            places, whole = stack()
            output.write(json.dumps({"frames": places, "whole": whole}) + "\n")
    for breakpoint in breakpoints:
        breakpoint.delete()
    gdb.execute("detach")


main()
