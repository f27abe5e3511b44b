/* Prints where the fields are that memwatch reads out of a CPython, one `name value` a line; -1: no such field.
   Compiled against the headers of one version (see ../python_layouts.rs), which decide all of it. */
#define Py_BUILD_CORE 1
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include "Python.h"
#include "internal/pycore_pystate.h"
#if PY_VERSION_HEX >= 0x03090000
#include "internal/pycore_interp.h"
#include "internal/pycore_runtime.h"
#endif
#if PY_VERSION_HEX >= 0x030B0000
#include "internal/pycore_code.h"
#endif
#if PY_VERSION_HEX >= 0x030E0000
#include "internal/pycore_interpframe.h"
#elif PY_VERSION_HEX >= 0x030B0000
#include "internal/pycore_frame.h"
#else
#include "frameobject.h"
#endif

#define SHOW(name, value) printf("%s %ld\n", name, (long)(value))
#define NONE(name) SHOW(name, -1)
#define AT(name, type, field) SHOW(name, offsetof(type, field))

/* Which bit of the state is the lowest one of `kind`. */
static int kind_bit(void)
{
    PyASCIIObject object;
    memset(&object, 0, sizeof object);
    object.state.kind = 1;
    unsigned int state;
    memcpy(&state, &object.state, sizeof state);
    return __builtin_ctz(state);
}

int main(void)
{
    SHOW("version", PY_VERSION_HEX);
#if PY_VERSION_HEX >= 0x030F0000
    NONE("runtime_key");
#elif PY_VERSION_HEX >= 0x030C0000
    AT("runtime_key", _PyRuntimeState, autoTSSkey._key);
#else
    AT("runtime_key", _PyRuntimeState, gilstate.autoTSSkey._key);
#endif
    AT("runtime_interpreters", _PyRuntimeState, interpreters.head);
#if PY_VERSION_HEX >= 0x030C0000
    AT("runtime_allocators", _PyRuntimeState, allocators.standard);
#else
    NONE("runtime_allocators");
#endif

    AT("interpreter_next", PyInterpreterState, next);
#if PY_VERSION_HEX >= 0x030B0000
    AT("interpreter_threads", PyInterpreterState, threads.head);
#else
    AT("interpreter_threads", PyInterpreterState, tstate_head);
#endif
#if PY_VERSION_HEX >= 0x030C0000
    AT("interpreter_pools", PyInterpreterState, obmalloc);
    SHOW("pools_indirect", sizeof(((PyInterpreterState *)0)->obmalloc) == sizeof(void *));
    AT("pools_arenas", struct _obmalloc_state, mgmt.arenas);
    AT("pools_arenas_most", struct _obmalloc_state, mgmt.maxarenas);
#else
    NONE("interpreter_pools");
    SHOW("pools_indirect", 0);
    NONE("pools_arenas");
    NONE("pools_arenas_most");
#endif

    AT("thread_next", PyThreadState, next);
    AT("thread_interpreter", PyThreadState, interp);
    AT("thread_id", PyThreadState, thread_id);
#if PY_VERSION_HEX >= 0x030B0000
    AT("thread_native_id", PyThreadState, native_thread_id);
#else
    NONE("thread_native_id");
#endif
#if PY_VERSION_HEX >= 0x030D0000
    AT("thread_frame", PyThreadState, current_frame);
    NONE("cframe_frame");
#elif PY_VERSION_HEX >= 0x030B0000
    AT("thread_frame", PyThreadState, cframe);
    AT("cframe_frame", _PyCFrame, current_frame);
#else
    AT("thread_frame", PyThreadState, frame);
    NONE("cframe_frame");
#endif

#if PY_VERSION_HEX >= 0x030B0000
    AT("frame_previous", _PyInterpreterFrame, previous);
#else
    AT("frame_previous", PyFrameObject, f_back);
    AT("frame_code", PyFrameObject, f_code);
    AT("frame_instruction", PyFrameObject, f_lasti);
    NONE("frame_mark");
#endif
#if PY_VERSION_HEX >= 0x030D0000
    AT("frame_code", _PyInterpreterFrame, f_executable);
    AT("frame_instruction", _PyInterpreterFrame, instr_ptr);
    AT("frame_mark", _PyInterpreterFrame, owner);
#elif PY_VERSION_HEX >= 0x030C0000
    AT("frame_code", _PyInterpreterFrame, f_code);
    AT("frame_instruction", _PyInterpreterFrame, prev_instr);
    AT("frame_mark", _PyInterpreterFrame, owner);
#elif PY_VERSION_HEX >= 0x030B0000
    AT("frame_code", _PyInterpreterFrame, f_code);
    AT("frame_instruction", _PyInterpreterFrame, prev_instr);
    AT("frame_mark", _PyInterpreterFrame, is_entry);
#endif
#if PY_VERSION_HEX >= 0x030E0000 && defined(Py_GIL_DISABLED)
    AT("frame_copy", _PyInterpreterFrame, tlbc_index);
    AT("code_copies", PyCodeObject, co_tlbc);
#else
    NONE("frame_copy");
    NONE("code_copies");
#endif

    AT("code_file_name", PyCodeObject, co_filename);
    AT("code_name", PyCodeObject, co_name);
    AT("code_first_line", PyCodeObject, co_firstlineno);
#if PY_VERSION_HEX >= 0x030B0000
    AT("code_qualified_name", PyCodeObject, co_qualname);
    AT("code_instructions", PyCodeObject, co_code_adaptive);
    AT("code_first_traceable", PyCodeObject, _co_firsttraceable);
#else
    NONE("code_qualified_name");
    NONE("code_instructions");
    NONE("code_first_traceable");
#endif
#if PY_VERSION_HEX >= 0x030A0000
    AT("code_line_table", PyCodeObject, co_linetable);
#else
    AT("code_line_table", PyCodeObject, co_lnotab);
#endif

    AT("object_type", PyObject, ob_type);
    AT("sequence_size", PyVarObject, ob_size);
    AT("bytes_data", PyBytesObject, ob_sval);
    AT("text_length", PyASCIIObject, length);
    AT("text_state", PyASCIIObject, state);
    SHOW("text_kind_bit", kind_bit());
    SHOW("text_ascii_data", sizeof(PyASCIIObject));
    SHOW("text_other_data", sizeof(PyCompactUnicodeObject));

    /* Where _Py_DebugOffsets, with which the process itself tells some of the above, has them. */
#if PY_VERSION_HEX >= 0x030D0000
    AT("told_runtime_interpreters", _Py_DebugOffsets, runtime_state.interpreters_head);
    AT("told_interpreter_next", _Py_DebugOffsets, interpreter_state.next);
    AT("told_interpreter_threads", _Py_DebugOffsets, interpreter_state.threads_head);
    AT("told_thread_next", _Py_DebugOffsets, thread_state.next);
    AT("told_thread_interpreter", _Py_DebugOffsets, thread_state.interp);
    AT("told_thread_id", _Py_DebugOffsets, thread_state.thread_id);
    AT("told_thread_native_id", _Py_DebugOffsets, thread_state.native_thread_id);
    AT("told_thread_frame", _Py_DebugOffsets, thread_state.current_frame);
    AT("told_frame_previous", _Py_DebugOffsets, interpreter_frame.previous);
    AT("told_frame_code", _Py_DebugOffsets, interpreter_frame.executable);
    AT("told_frame_instruction", _Py_DebugOffsets, interpreter_frame.instr_ptr);
    AT("told_frame_mark", _Py_DebugOffsets, interpreter_frame.owner);
    AT("told_code_file_name", _Py_DebugOffsets, code_object.filename);
    AT("told_code_name", _Py_DebugOffsets, code_object.name);
    AT("told_code_first_line", _Py_DebugOffsets, code_object.firstlineno);
    AT("told_code_qualified_name", _Py_DebugOffsets, code_object.qualname);
    AT("told_code_instructions", _Py_DebugOffsets, code_object.co_code_adaptive);
    AT("told_code_line_table", _Py_DebugOffsets, code_object.linetable);
    AT("told_object_type", _Py_DebugOffsets, pyobject.ob_type);
    AT("told_sequence_size", _Py_DebugOffsets, bytes_object.ob_size);
    AT("told_bytes_data", _Py_DebugOffsets, bytes_object.ob_sval);
    AT("told_text_length", _Py_DebugOffsets, unicode_object.length);
    AT("told_text_state", _Py_DebugOffsets, unicode_object.state);
    AT("told_text_ascii_data", _Py_DebugOffsets, unicode_object.asciiobject_size);
#else
    NONE("told_runtime_interpreters");
    NONE("told_interpreter_next");
    NONE("told_interpreter_threads");
    NONE("told_thread_next");
    NONE("told_thread_interpreter");
    NONE("told_thread_id");
    NONE("told_thread_native_id");
    NONE("told_thread_frame");
    NONE("told_frame_previous");
    NONE("told_frame_code");
    NONE("told_frame_instruction");
    NONE("told_frame_mark");
    NONE("told_code_file_name");
    NONE("told_code_name");
    NONE("told_code_first_line");
    NONE("told_code_qualified_name");
    NONE("told_code_instructions");
    NONE("told_code_line_table");
    NONE("told_object_type");
    NONE("told_sequence_size");
    NONE("told_bytes_data");
    NONE("told_text_length");
    NONE("told_text_state");
    NONE("told_text_ascii_data");
#endif
    return 0;
}
