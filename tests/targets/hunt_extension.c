/* What hunt.py's service does, in C: the leak, the buffers and the cache are malloc's. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>
#include <string.h>

#define BUFFERS 8000
#define SESSIONS (1 << 20)
#define ENTRIES (1 << 20)

/* Seen from outside: what nobody can read would be optimised away, with its malloc. */
char *sessions[SESSIONS];
static size_t session;
static char *buffers[BUFFERS];
static size_t buffer;
static char *cache[ENTRIES];

static PyObject *remember_session(PyObject *module, PyObject *none) {
    char *bytes = malloc(100);
    sessions[session++ % SESSIONS] = bytes;
    Py_RETURN_NONE;
}

static PyObject *read_request(PyObject *module, PyObject *none) {
    char **place = &buffers[buffer++ % BUFFERS];
    free(*place);
    *place = malloc(65536);
    if (*place) memset(*place, 'b', 65536);
    Py_RETURN_NONE;
}

static PyObject *fill_cache(PyObject *module, PyObject *number) {
    char **place = &cache[PyLong_AsSize_t(number) % ENTRIES];
    free(*place);
    *place = malloc(5000);
    if (*place) memset(*place, 'c', 5000);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"remember_session", remember_session, METH_NOARGS, NULL},
    {"read_request", read_request, METH_NOARGS, NULL},
    {"fill_cache", fill_cache, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "hunt_extension", NULL, -1, functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_hunt_extension(void) {
    return PyModule_Create(&definition);
}
