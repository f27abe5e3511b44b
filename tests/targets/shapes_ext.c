/* An extension module of CPython that allocates by itself, and from below what it calls back. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>

__attribute__((noinline)) static PyObject *nested(PyObject *function, long n, int depth) {
    char room[depth * 16 + 8];
    room[0] = (char)depth;
    void *block = malloc((size_t)depth * 100 + 1);
    PyObject *result = depth ? nested(function, n, depth - 1) : PyObject_CallFunction(function, "l", n);
    free(block);
    return room[0] == (char)depth ? result : NULL;
}
static PyObject *call(PyObject *self, PyObject *arguments) {
    PyObject *function;
    long n;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "Ol", &function, &n)) return NULL;
    return nested(function, n, 4);
}

static PyObject *key;
static int compare(const void *a, const void *b) {
    PyObject *left = PyObject_CallFunctionObjArgs(key, *(PyObject *const *)a, NULL);
    PyObject *right = PyObject_CallFunctionObjArgs(key, *(PyObject *const *)b, NULL);
    int less = left && right ? PyObject_RichCompareBool(left, right, Py_LT) : 0;
    Py_XDECREF(left);
    Py_XDECREF(right);
    return less ? -1 : 1;
}
static PyObject *sort(PyObject *self, PyObject *arguments) {
    PyObject *list;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "O!O", &PyList_Type, &list, &key)) return NULL;
    Py_ssize_t count = PyList_GET_SIZE(list);
    PyObject **items = malloc((size_t)count * sizeof *items + 1);
    for (Py_ssize_t i = 0; i < count; i++) items[i] = PyList_GET_ITEM(list, i);
    qsort(items, (size_t)count, sizeof *items, compare);
    free(items);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"call", call, METH_VARARGS, NULL}, {"sort", sort, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "shapes_ext", NULL, -1, methods, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit_shapes_ext(void) { return PyModule_Create(&module); }
