//! What the samples of a profile point to: texts, mappings, functions and locations, each once.

use std::collections::HashMap;
use std::sync::Arc;

use super::proto::{Function, Line, Location, Mapping};
use crate::model::label;
use crate::model::report::{Frame, FrameKind};

/// Addresses of frames are places in files. Each file gets a range of its own, of the same size in every profile,
/// so that tools that take the start away arrive at the same place in the file, also when they compare profiles.
const RANGE: u64 = 1 << 40;

pub(super) struct Tables {
    pub texts: Vec<String>,
    pub mappings: Vec<Mapping>,
    pub functions: Vec<Function>,
    pub locations: Vec<Location>,
    text_ids: HashMap<String, i64>,
    mapping_ids: HashMap<(i64, i64), u64>,
    function_ids: HashMap<(i64, i64), u64>,
    location_ids: HashMap<(u64, u64, Vec<Line>), u64>,
}

impl Tables {
    pub fn new() -> Self {
        Self {
            texts: vec![String::new()],
            text_ids: HashMap::from([(String::new(), 0)]),
            mappings: Vec::new(),
            functions: Vec::new(),
            locations: Vec::new(),
            mapping_ids: HashMap::new(),
            function_ids: HashMap::new(),
            location_ids: HashMap::new(),
        }
    }

    pub fn text(&mut self, text: &str) -> i64 {
        if let Some(id) = self.text_ids.get(text) {
            return *id;
        }
        let id = self.texts.len() as i64;
        self.texts.push(text.to_owned());
        self.text_ids.insert(text.to_owned(), id);
        id
    }

    /// The locations of a stack. Inlined functions share the location of the one they were inlined into.
    pub fn stack(&mut self, frames: &[Arc<Frame>]) -> Vec<u64> {
        let mut ids = Vec::with_capacity(frames.len());
        let mut lines = Vec::new();
        for (index, frame) in frames.iter().enumerate() {
            lines.push(self.line(frame));
            let goes_on = frame.inlined && frames.get(index + 1).is_some_and(|next| next.kind == frame.kind);
            if !goes_on {
                ids.push(self.location(frame, std::mem::take(&mut lines)));
            }
        }
        ids
    }

    /// A location that is only a word.
    pub fn marker(&mut self, word: &str) -> u64 {
        let function_id = self.function(word, "");
        self.location_id(0, 0, vec![Line { function_id, line: 0 }])
    }

    fn line(&mut self, frame: &Frame) -> Line {
        let function_id = self.function(&label::frame(frame), frame.file.as_deref().unwrap_or_default());
        Line {
            function_id,
            line: i64::from(frame.line.unwrap_or(0)),
        }
    }

    fn function(&mut self, name: &str, file: &str) -> u64 {
        let (name, filename) = (self.text(name), self.text(file));
        let next = self.functions.len() as u64 + 1;
        *self.function_ids.entry((name, filename)).or_insert_with(|| {
            self.functions.push(Function {
                id: next,
                name,
                system_name: name,
                filename,
            });
            next
        })
    }

    fn location(&mut self, frame: &Frame, lines: Vec<Line>) -> u64 {
        let mapping_id = self.mapping(frame);
        let start = mapping_id * RANGE;
        let address = match frame.address {
            Some(address) if mapping_id > 0 && address < RANGE => start + address,
            Some(address) => address,
            None => 0,
        };
        self.location_id(mapping_id, address, lines)
    }

    fn location_id(&mut self, mapping_id: u64, address: u64, line: Vec<Line>) -> u64 {
        let next = self.locations.len() as u64 + 1;
        *self
            .location_ids
            .entry((mapping_id, address, line.clone()))
            .or_insert_with(|| {
                self.locations.push(Location {
                    id: next,
                    mapping_id,
                    address,
                    line,
                });
                next
            })
    }

    /// 0 for frames that have no file of machine code.
    pub fn mapping(&mut self, frame: &Frame) -> u64 {
        let Some(module) = frame
            .module
            .as_deref()
            .filter(|_| frame.kind != FrameKind::Python)
        else {
            return 0;
        };
        let key = (
            self.text(module),
            self.text(frame.build_id.as_deref().unwrap_or_default()),
        );
        let next = self.mappings.len() as u64 + 1;
        *self.mapping_ids.entry(key).or_insert_with(|| {
            self.mappings.push(Mapping {
                id: next,
                memory_start: next * RANGE,
                memory_limit: (next + 1) * RANGE,
                file_offset: 0,
                filename: key.0,
                build_id: key.1,
                // The names are in the profile: nobody is to look for them in files of the same path elsewhere.
                has_functions: true,
                has_filenames: true,
                has_line_numbers: true,
                has_inline_frames: true,
            });
            next
        })
    }
}
