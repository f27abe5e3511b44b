//! Names: each text, frame and stack is sent once, when it is first needed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Bounds;
use super::section::Section;
use crate::model::report::{Frame, FrameKind};
use crate::numbers::Bad;
use crate::numbers::{Input, put, put_difference, put_option};
use crate::symbolize::names::{NamedStack, StackNames};

/// A frame with its texts as numbers; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct SavedFrame {
    kind: FrameKind,
    inlined: bool,
    function: u32,
    file: u32,
    module: u32,
    build_id: u32,
    line: Option<u32>,
    offset: Option<u64>,
    address: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SavedStack {
    frames: Box<[u32]>,
    truncated: bool,
}

const KINDS: [FrameKind; 3] = [FrameKind::Native, FrameKind::Python, FrameKind::Kernel];
const INLINED: u8 = 0x80;

/// The index in [`KINDS`].
const fn kind_number(kind: FrameKind) -> u8 {
    match kind {
        FrameKind::Native => 0,
        FrameKind::Python => 1,
        FrameKind::Kernel => 2,
    }
}

/// The writer's side: what was sent, and what is to be sent with the next tick.
#[derive(Debug, Default)]
pub(super) struct Interner {
    strings: HashMap<Box<str>, u32>,
    frames: HashMap<SavedFrame, u32>,
    stacks: HashMap<SavedStack, u32>,
    /// The last frame sent: the next is written against it.
    last: (u64, u32),
    /// What a stack hash of a process was said to mean.
    known: HashMap<(u32, u64), u32>,
    /// Stacks that may get better names yet.
    raw: HashSet<(u32, u64)>,
    new_strings: Pending,
    new_frames: Pending,
    new_stacks: Pending,
    new_known: Pending,
}

/// Items to be sent, already as bytes.
#[derive(Debug, Default)]
struct Pending {
    count: u64,
    bytes: Vec<u8>,
}

impl Pending {
    fn send(&mut self, section: Section, out: &mut Vec<u8>) {
        if self.count > 0 {
            let mut bytes = Vec::with_capacity(self.bytes.len() + 4);
            put(&mut bytes, self.count);
            bytes.append(&mut self.bytes);
            section.put(out, &bytes);
            self.count = 0;
        }
    }
}

impl Interner {
    /// Whether the stack must be asked for: it is new, or its names were not all known.
    pub fn wants(&self, instance: u32, hash: u64) -> bool {
        !self.known.contains_key(&(instance, hash)) || self.raw.contains(&(instance, hash))
    }

    pub fn take_raw(&mut self, from: &Self) {
        self.raw.clone_from(&from.raw);
    }

    pub fn raw(&self) -> Vec<(u32, u64)> {
        self.raw.iter().copied().collect()
    }

    pub fn add(&mut self, instance: u32, hash: u64, stack: &NamedStack) {
        let frames = stack.frames.iter().map(|frame| self.frame(frame)).collect();
        let number = self.stack(SavedStack {
            frames,
            truncated: stack.truncated,
        });
        if stack.raw {
            self.raw.insert((instance, hash));
        } else {
            self.raw.remove(&(instance, hash));
        }
        if self.known.insert((instance, hash), number) != Some(number) {
            self.new_known.count += 1;
            let out = &mut self.new_known.bytes;
            put(out, u64::from(instance));
            out.extend_from_slice(&hash.to_le_bytes());
            put(out, u64::from(number));
        }
    }

    fn stack(&mut self, stack: SavedStack) -> u32 {
        let next = self.stacks.len() as u32;
        if let Some(number) = self.stacks.get(&stack) {
            return *number;
        }
        self.new_stacks.count += 1;
        let out = &mut self.new_stacks.bytes;
        put(out, (stack.frames.len() as u64) << 1 | u64::from(stack.truncated));
        let mut before = 0;
        for frame in &stack.frames {
            put_difference(out, u64::from(*frame), before);
            before = u64::from(*frame);
        }
        self.stacks.insert(stack, next);
        next
    }

    fn frame(&mut self, frame: &Frame) -> u32 {
        let saved = SavedFrame {
            kind: frame.kind,
            inlined: frame.inlined,
            function: self.string(frame.function.as_deref()),
            file: self.string(frame.file.as_deref()),
            module: self.string(frame.module.as_deref()),
            build_id: self.string(frame.build_id.as_deref()),
            line: frame.line,
            offset: frame.offset,
            address: frame.address,
        };
        let next = self.frames.len() as u32;
        if let Some(number) = self.frames.get(&saved) {
            return *number;
        }
        self.new_frames.count += 1;
        saved.put(&mut self.new_frames.bytes, &mut self.last);
        self.frames.insert(saved, next);
        next
    }

    /// From 1 on; 0 is no text.
    fn string(&mut self, text: Option<&str>) -> u32 {
        let Some(text) = text else { return 0 };
        if let Some(number) = self.strings.get(text) {
            return *number;
        }
        let next = self.strings.len() as u32 + 1;
        self.new_strings.count += 1;
        put(&mut self.new_strings.bytes, text.len() as u64);
        self.new_strings.bytes.extend_from_slice(text.as_bytes());
        self.strings.insert(text.into(), next);
        next
    }

    pub fn forget(&mut self, instances: &HashSet<u32>) {
        if !instances.is_empty() {
            self.known.retain(|(of, _), _| !instances.contains(of));
            self.raw.retain(|(of, _)| !instances.contains(of));
        }
    }

    /// Writes what is new since the last call.
    pub fn send(&mut self, out: &mut Vec<u8>) {
        self.new_strings.send(Section::Strings, out);
        self.new_frames.send(Section::Frames, out);
        self.new_stacks.send(Section::Stacks, out);
        self.new_known.send(Section::StackOf, out);
    }
}

impl SavedFrame {
    fn put(&self, out: &mut Vec<u8>, last: &mut (u64, u32)) {
        out.push(kind_number(self.kind) | if self.inlined { INLINED } else { 0 });
        for text in [self.function, self.file, self.module, self.build_id] {
            put(out, u64::from(text));
        }
        // Lines and addresses of frames that come after one another are often near one another.
        put(out, u64::from(self.line.is_some()));
        if let Some(line) = self.line {
            put_difference(out, u64::from(line), u64::from(last.1));
            last.1 = line;
        }
        put_option(out, self.offset);
        put(out, u64::from(self.address.is_some()));
        if let Some(address) = self.address {
            put_difference(out, address, last.0);
            last.0 = address;
        }
    }

    fn read(input: &mut Input<'_>, last: &mut (u64, u32), strings: usize) -> Result<Self, Bad> {
        let flags = input.byte()?;
        let kind = KINDS
            .get(usize::from(flags & !INLINED))
            .ok_or(Bad("a frame is of no known kind"))?;
        let mut texts = [0; 4];
        for text in &mut texts {
            *text = input.small()?;
            if *text as usize > strings {
                return Err(Bad("a frame has a text that is not there"));
            }
        }
        let mut line = None;
        if input.number()? != 0 {
            let number = input.difference(u64::from(last.1))?;
            last.1 = u32::try_from(number).map_err(|_| Bad("a line is too large"))?;
            line = Some(last.1);
        }
        let offset = input.option()?;
        let mut address = None;
        if input.number()? != 0 {
            last.0 = input.difference(last.0)?;
            address = Some(last.0);
        }
        let [function, file, module, build_id] = texts;
        Ok(Self {
            kind: *kind,
            inlined: flags & INLINED != 0,
            function,
            file,
            module,
            build_id,
            line,
            offset,
            address,
        })
    }
}

/// The reader's side: all names that came so far. Stacks are put together when they are asked for: whole they would
/// take a hundred times the room.
#[derive(Clone, Debug, Default)]
pub struct SavedNames {
    text: String,
    /// Where each text ends.
    strings: Vec<usize>,
    frames: Vec<SavedFrame>,
    /// Those that were asked for, by the same numbers: stacks share them.
    shared: Vec<Option<Arc<Frame>>>,
    stacks: Vec<SavedStack>,
    known: HashMap<(u32, u64), u32>,
    last: (u64, u32),
}

impl SavedNames {
    pub(super) fn read_strings(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<(), Bad> {
        let mut input = Input::new(bytes);
        for _ in 0..input.count()? {
            let text = std::str::from_utf8(input.bytes()?).map_err(|_| Bad("a text is no text"))?;
            if self.text.len() + text.len() > bounds.text_bytes {
                return Err(Bad("it has more text than a recording can"));
            }
            self.text.push_str(text);
            self.strings.push(self.text.len());
        }
        Ok(())
    }

    pub(super) fn read_frames(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        let mut input = Input::new(bytes);
        for _ in 0..input.count()? {
            self.frames
                .push(SavedFrame::read(&mut input, &mut self.last, self.strings.len())?);
        }
        Ok(())
    }

    pub(super) fn read_stacks(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        let mut input = Input::new(bytes);
        for _ in 0..input.count()? {
            let head = input.number()?;
            let length = (head >> 1) as usize;
            if length > input.rest().len() {
                return Err(Bad("a stack goes beyond the end"));
            }
            let mut frames = Vec::with_capacity(length);
            let mut before = 0;
            for _ in 0..length {
                before = input.difference(before)?;
                if before >= self.frames.len() as u64 {
                    return Err(Bad("a stack has a frame that is not there"));
                }
                frames.push(before as u32);
            }
            self.stacks.push(SavedStack {
                frames: frames.into(),
                truncated: head & 1 != 0,
            });
        }
        Ok(())
    }

    pub(super) fn read_known(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        let mut input = Input::new(bytes);
        for _ in 0..input.count()? {
            let instance = input.small()?;
            let hash = read_hash(&mut input)?;
            let stack = input.small()?;
            if stack as usize >= self.stacks.len() {
                return Err(Bad("a site has a stack that is not there"));
            }
            self.known.insert((instance, hash), stack);
        }
        Ok(())
    }

    fn string(&self, number: u32) -> Option<&str> {
        let index = (number as usize).checked_sub(1)?;
        let end = *self.strings.get(index)?;
        let start = index.checked_sub(1).and_then(|before| self.strings.get(before));
        self.text.get(start.copied().unwrap_or(0)..end)
    }

    fn frame(&self, number: usize) -> Option<Frame> {
        let saved = self.frames.get(number)?;
        let text = |number| self.string(number).map(str::to_owned);
        Some(Frame {
            kind: saved.kind,
            function: text(saved.function),
            offset: saved.offset,
            file: text(saved.file),
            line: saved.line,
            module: text(saved.module),
            build_id: text(saved.build_id),
            address: saved.address,
            inlined: saved.inlined,
        })
    }

    fn shared_frame(&mut self, number: usize) -> Option<Arc<Frame>> {
        if let Some(Some(frame)) = self.shared.get(number) {
            return Some(Arc::clone(frame));
        }
        let frame = Arc::new(self.frame(number)?);
        self.shared.resize(self.frames.len(), None);
        self.shared[number] = Some(Arc::clone(&frame));
        Some(frame)
    }

    pub fn get(&mut self, instance: u32, hash: u64) -> Option<NamedStack> {
        let number = *self.known.get(&(instance, hash))? as usize;
        let stack = self.stacks.get(number)?;
        let (length, truncated) = (stack.frames.len(), stack.truncated);
        let mut frames = Vec::with_capacity(length);
        for index in 0..length {
            let frame = self.stacks[number].frames[index];
            frames.extend(self.shared_frame(frame as usize));
        }
        Some(NamedStack {
            frames,
            truncated,
            raw: false,
        })
    }
}

pub(super) fn read_hash(input: &mut Input<'_>) -> Result<u64, Bad> {
    let mut hash = [0; 8];
    for byte in &mut hash {
        *byte = input.byte()?;
    }
    Ok(u64::from_le_bytes(hash))
}

impl StackNames for SavedNames {
    fn stack(&mut self, instance: u32, stack_hash: u64) -> Arc<NamedStack> {
        Arc::new(self.get(instance, stack_hash).unwrap_or_else(|| NamedStack {
            truncated: true,
            ..NamedStack::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_frame_has_its_number() {
        for (index, kind) in KINDS.into_iter().enumerate() {
            assert_eq!(usize::from(kind_number(kind)), index);
        }
    }

    /// One process after the other gives the same names, and only the first time they are written.
    #[test]
    fn a_name_is_written_once() {
        let frame = |line| Frame {
            function: Some("grow".into()),
            file: Some("cache.c".into()),
            line,
            offset: Some(3),
            inlined: line.is_none(),
            ..Frame::default()
        };
        let stack = NamedStack {
            frames: Frame::shared([frame(Some(7)), frame(None), frame(Some(7))]),
            truncated: true,
            raw: false,
        };
        let (mut interner, mut saved) = (Interner::default(), SavedNames::default());
        let mut sizes = Vec::new();
        for instance in 1..=2 {
            let mut raw = Vec::new();
            interner.add(instance, 99, &stack);
            interner.add(instance, 99, &stack);
            interner.send(&mut raw);
            sizes.push(raw.len());
            let mut input = Input::new(&raw);
            while let Some((section, bytes)) = crate::store::section::next(&mut input).unwrap() {
                match section {
                    Section::Strings => saved.read_strings(bytes, &Bounds::SMALL).unwrap(),
                    Section::Frames => saved.read_frames(bytes).unwrap(),
                    Section::Stacks => saved.read_stacks(bytes).unwrap(),
                    _ => saved.read_known(bytes).unwrap(),
                }
            }
            assert_eq!(saved.get(instance, 99).as_ref(), Some(&stack));
        }
        assert!(sizes[1] < 15 && sizes[0] > 30, "{sizes:?}");
        assert_eq!(saved.get(3, 99), None);
        assert!(saved.stack(3, 99).truncated);
    }
}
