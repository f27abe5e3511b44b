//! Python frames with their names, at their places among the native ones.

use std::{collections::HashMap, sync::Arc};

use memwatch_common::{
    Stack,
    python::{CodeCopy, CodeKey, FRAME_SHIM, PythonFrame, PythonStack},
    stack::STACK_COMPLETE,
};

use super::symbolizer::Frames;
use crate::{
    model::report::{Frame, FrameKind},
    python::{
        code::{CodeCache, CodeFrame, Location},
        interpreter::Interpreter,
        memory::ProcessMemory,
        merge::{self, Whole},
    },
};

/// A process that runs CPython.
#[derive(Debug)]
struct Process {
    interpreter: Arc<Interpreter>,
    /// Of this program in this process; none after its end, when nothing can be read.
    memory: Option<ProcessMemory>,
    code: CodeCache,
}

/// What the Python frames of all processes are called.
#[derive(Debug, Default)]
pub struct PythonNames {
    processes: HashMap<u32, Process>,
}

impl PythonNames {
    pub fn add(&mut self, instance: u32, interpreter: Arc<Interpreter>, memory: ProcessMemory) {
        let process = Process {
            interpreter,
            memory: Some(memory),
            code: CodeCache::default(),
        };
        self.processes.insert(instance, process);
    }

    pub fn interpreter(&self, instance: u32) -> Option<&Arc<Interpreter>> {
        self.processes.get(&instance).map(|process| &process.interpreter)
    }

    /// The process has ended: what was read of it is still known.
    pub fn end(&mut self, instance: u32) {
        if let Some(process) = self.processes.get_mut(&instance) {
            process.memory = None;
        }
    }

    /// The interpreter, and the memory it is in.
    pub fn process(&self, instance: u32) -> Option<(&Interpreter, &ProcessMemory)> {
        let process = self.processes.get(&instance)?;
        Some((&process.interpreter, process.memory.as_ref()?))
    }

    pub fn forget(&mut self, instances: &[u32]) {
        for instance in instances {
            self.processes.remove(instance);
        }
    }

    /// No process runs CPython.
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// Takes in a code object as it was when it was first seen.
    /// False when nothing is known of the process (yet).
    pub fn learn(&mut self, key: &CodeKey, copy: &CodeCopy) -> bool {
        let Some(process) = self.processes.get_mut(&key.instance) else {
            return false;
        };
        let reader = process.interpreter.code_reader();
        process.code.learn(&reader, key, copy, &process.memory);
        true
    }

    /// Reads what the frames refer to now: it may be gone when names are asked for.
    pub fn read(&mut self, instance: u32, stack: &PythonStack) {
        if let Some(process) = self.processes.get_mut(&instance) {
            for frame in frames_of(stack) {
                process.locate(frame);
            }
        }
    }

    /// One stack of both kinds of frames. `native` has the names of each native frame. Frames inside the interpreter
    /// are left out: the Python frames stand for them.
    pub fn merge(
        &mut self,
        instance: u32,
        stack: &Stack,
        native: &[Frames],
        python: &PythonStack,
    ) -> Option<Vec<Arc<Frame>>> {
        let process = self.processes.get_mut(&instance)?;
        let code = &process.interpreter.native;
        let places: Vec<u64> = (0..native.len())
            .map(|at| stack.frames[at].wrapping_sub(u64::from(at > 0)))
            .collect();
        let evaluates: Vec<bool> = places.iter().map(|place| code.is_evaluating(*place)).collect();
        let internal: Vec<bool> = places.iter().map(|place| code.is_internal(*place)).collect();
        let found: Vec<PythonFrame> = frames_of(python).copied().collect();
        let kinds: Vec<u8> = found.iter().map(|frame| frame.kind as u8).collect();
        let whole = Whole {
            native: stack.flags & STACK_COMPLETE != 0,
            python: python.flags & STACK_COMPLETE != 0,
        };
        let mut frames = Vec::with_capacity(native.len() + found.len());
        for frame in merge::merge(&evaluates, &kinds, whole).frames {
            match frame {
                merge::Frame::Native(at) if internal[at] => {}
                merge::Frame::Native(at) => frames.extend_from_slice(&native[at]),
                merge::Frame::Python(at) => frames.extend(process.name(&found[at]).map(Arc::new)),
            }
        }
        Some(frames)
    }
}

fn frames_of(stack: &PythonStack) -> impl Iterator<Item = &PythonFrame> {
    stack.frames.iter().take(stack.count as usize)
}

impl Process {
    fn locate(&mut self, frame: &PythonFrame) -> Option<Location> {
        if frame.kind == u32::from(FRAME_SHIM) {
            return None;
        }
        let frame = CodeFrame {
            code: frame.code,
            fingerprint: frame.fingerprint,
            instruction: frame.instruction,
        };
        let reader = self.interpreter.code_reader();
        self.code.locate(&reader, frame, &self.memory).ok()
    }

    /// None for a frame that Python itself would not show.
    fn name(&mut self, frame: &PythonFrame) -> Option<Frame> {
        let unknown = Frame {
            kind: FrameKind::Python,
            ..Frame::default()
        };
        match self.locate(frame) {
            Some(location) if location.incomplete => None,
            Some(location) => Some(Frame {
                function: Some(location.function.to_string()),
                file: Some(location.file.to_string()),
                line: location.line,
                ..unknown
            }),
            None => Some(unknown),
        }
    }
}
