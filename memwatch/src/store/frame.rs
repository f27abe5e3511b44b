//! Frames: what makes a tick whole or not there at all.

use std::io::{self, Read, Write};

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::error::StoreError;
use super::{Bounds, VERSION};
use crate::numbers::Bad;
use crate::numbers::{Input, put, put_option};

const MAGIC: &[u8; 8] = b"memwatch";
pub(super) const START_BYTES: u64 = 12;
const PREFIX_BYTES: usize = 8;

/// Measured on ten thousand busy sites: higher levels save a few per cent and take several times as long.
const LEVEL: i32 = 3;

/// What can be known of a tick without unpacking it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// The mark of a recording that ended as it should. Not a tick.
    pub end: bool,
    pub tick: u64,
    pub at_ns: u64,
    pub inuse_bytes: u64,
    pub inuse_objects: u64,
    pub rss_bytes: Option<u64>,
    /// How many bytes the tick has unpacked.
    pub raw_bytes: u64,
}

impl Head {
    fn put(&self, out: &mut Vec<u8>) {
        put(out, u64::from(self.end));
        for value in [self.tick, self.at_ns, self.inuse_bytes, self.inuse_objects] {
            put(out, value);
        }
        put_option(out, self.rss_bytes);
        put(out, self.raw_bytes);
    }

    fn read(input: &mut Input<'_>) -> Result<Self, Bad> {
        Ok(Self {
            end: input.number()? != 0,
            tick: input.number()?,
            at_ns: input.number()?,
            inuse_bytes: input.number()?,
            inuse_objects: input.number()?,
            rss_bytes: input.option()?,
            raw_bytes: input.number()?,
        })
    }
}

pub(super) fn write_start(out: &mut Vec<u8>) {
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
}

/// The version of the file.
pub(super) fn read_start(source: &mut dyn Read) -> Result<u32, StoreError> {
    let mut start = Vec::new();
    source.take(START_BYTES).read_to_end(&mut start)?;
    let Some((magic, version)) = start.split_at_checked(MAGIC.len()) else {
        return Err(StoreError::NotARecording);
    };
    if magic != MAGIC {
        return Err(StoreError::NotARecording);
    }
    let Ok(version) = version.try_into().map(u32::from_le_bytes) else {
        return Err(StoreError::NoTick);
    };
    match version {
        0 => Err(StoreError::NotARecording),
        1..=VERSION => Ok(version),
        found => Err(StoreError::Newer { found }),
    }
}

/// What the next frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Its packed bytes begin at this place in the buffer.
    Frame(Head, usize),
    /// The file ends at the end of a frame.
    Nothing,
    /// The file ends in the middle of a frame, this many bytes into it.
    Cut(u64),
    /// The frame is not what was written.
    Damaged,
}

/// Reads the next frame into `buffer`, which is used again and again.
pub(super) fn next(source: &mut dyn Read, buffer: &mut Vec<u8>, bounds: &Bounds) -> io::Result<Next> {
    buffer.clear();
    let prefix = source.take(PREFIX_BYTES as u64).read_to_end(buffer)?;
    if prefix == 0 {
        return Ok(Next::Nothing);
    }
    let Some((length, checksum)) = numbers(buffer) else {
        return Ok(Next::Cut(prefix as u64));
    };
    if length > bounds.frame_bytes {
        return Ok(Next::Damaged);
    }
    buffer.clear();
    // Grows with what is there, not with what the length claims.
    let read = source.take(u64::from(length)).read_to_end(buffer)?;
    if read < length as usize {
        return Ok(Next::Cut((PREFIX_BYTES + read) as u64));
    }
    if crc32fast::hash(buffer) != checksum {
        return Ok(Next::Damaged);
    }
    let mut input = Input::new(buffer);
    let Ok(head) = Head::read(&mut input) else {
        return Ok(Next::Damaged);
    };
    Ok(Next::Frame(head, buffer.len() - input.rest().len()))
}

fn numbers(prefix: &[u8]) -> Option<(u32, u32)> {
    let (length, checksum) = prefix.split_at_checked(4)?;
    Some((
        u32::from_le_bytes(length.try_into().ok()?),
        u32::from_le_bytes(checksum.try_into().ok()?),
    ))
}

/// Packs ticks into frames.
pub(super) struct Packer {
    stream: zstd::stream::write::Encoder<'static, Vec<u8>>,
}

impl Packer {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            stream: zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?,
        })
    }

    /// The whole frame.
    pub fn frame(&mut self, head: &Head, raw: &[u8]) -> io::Result<Vec<u8>> {
        let mut frame = vec![0; PREFIX_BYTES];
        let head = Head {
            raw_bytes: raw.len() as u64,
            ..*head
        };
        head.put(&mut frame);
        self.stream.write_all(raw)?;
        // Everything so far can be unpacked from what is out now.
        self.stream.flush()?;
        frame.append(self.stream.get_mut());
        let body = &frame[PREFIX_BYTES..];
        let (length, checksum) = (body.len(), crc32fast::hash(body));
        let length = u32::try_from(length).map_err(|_| io::Error::other("a tick is larger than 4 GiB"))?;
        frame[..4].copy_from_slice(&length.to_le_bytes());
        frame[4..PREFIX_BYTES].copy_from_slice(&checksum.to_le_bytes());
        Ok(frame)
    }
}

/// Unpacks the frames of one file, in their order.
pub(super) struct Unpacker {
    stream: Decoder<'static>,
    total_bytes: u64,
}

/// Room is made for this much at a time, so that a frame that lies about its size costs little.
const STEP_BYTES: usize = 1 << 18;

const BAD: Bad = Bad("it cannot be unpacked");

/// The encoder's window at [`LEVEL`] is 2 MiB; a file that asks for more was not written by memwatch.
const WINDOW_LOG: u32 = 23;

impl Unpacker {
    pub fn new() -> io::Result<Self> {
        let mut stream = Decoder::new()?;
        stream.set_parameter(zstd::zstd_safe::DParameter::WindowLogMax(WINDOW_LOG))?;
        Ok(Self {
            stream,
            total_bytes: 0,
        })
    }

    /// Puts what is packed in the frame into `out`.
    pub fn unpack(
        &mut self,
        head: &Head,
        packed: &[u8],
        out: &mut Vec<u8>,
        bounds: &Bounds,
    ) -> Result<(), Bad> {
        out.clear();
        self.total_bytes = self.total_bytes.saturating_add(head.raw_bytes);
        if head.raw_bytes > u64::from(bounds.frame_bytes) || self.total_bytes > bounds.total_bytes {
            return Err(Bad("it holds more than a recording can"));
        }
        let wanted = head.raw_bytes as usize;
        let mut input = InBuffer::around(packed);
        while out.len() < wanted {
            let room = (wanted - out.len()).min(STEP_BYTES);
            if self.run(&mut input, out, room)? == 0 {
                return Err(BAD);
            }
        }
        // Not a byte more than was said.
        if self.run(&mut input, out, 1)? > 0 || input.pos() < packed.len() {
            return Err(BAD);
        }
        Ok(())
    }

    /// Unpacks up to `room` bytes more; tells how many. None only when there are none.
    fn run(&mut self, input: &mut InBuffer<'_>, out: &mut Vec<u8>, room: usize) -> Result<usize, Bad> {
        let from = out.len();
        out.resize(from + room, 0);
        let mut filled = from;
        loop {
            let before = input.pos();
            let mut output = OutBuffer::around_pos(out.as_mut_slice(), filled);
            let result = self.stream.run(input, &mut output);
            let moved = output.pos() > filled || input.pos() > before;
            filled = output.pos();
            if result.is_err() {
                return Err(BAD);
            }
            if !moved || filled > from {
                out.truncate(filled);
                return Ok(filled - from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(raws: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut packer = Packer::new().unwrap();
        let numbered = raws.iter().enumerate();
        numbered
            .map(|(tick, raw)| {
                let head = Head {
                    tick: tick as u64,
                    rss_bytes: Some(0),
                    ..Head::default()
                };
                packer.frame(&head, raw).unwrap()
            })
            .collect()
    }

    fn read(mut bytes: &[u8]) -> (Vec<Vec<u8>>, Next) {
        let (mut unpacker, mut buffer, mut all) = (Unpacker::new().unwrap(), Vec::new(), Vec::new());
        loop {
            match next(&mut bytes, &mut buffer, &Bounds::SMALL).unwrap() {
                Next::Frame(head, at) => {
                    let mut raw = Vec::new();
                    if unpacker
                        .unpack(&head, &buffer[at..], &mut raw, &Bounds::SMALL)
                        .is_err()
                    {
                        return (all, Next::Damaged);
                    }
                    all.push(raw);
                }
                end => return (all, end),
            }
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let long = vec![7; 900_000];
        let raws: [&[u8]; 5] = [b"one", b"", &long, b"four", b"one"];
        let bytes = frames(&raws).concat();
        assert!(bytes.len() < 1000);
        assert_eq!(
            read(&bytes),
            (raws.iter().map(|raw| raw.to_vec()).collect(), Next::Nothing)
        );
    }

    #[test]
    fn a_frame_that_lies_about_its_size_is_refused() {
        for raw_bytes in [0, 2, 4, 1 << 40] {
            let mut packer = Packer::new().unwrap();
            let mut frame = packer.frame(&Head::default(), b"abc").unwrap();
            let head = Head {
                raw_bytes,
                ..Head::default()
            };
            let mut body = Vec::new();
            head.put(&mut body);
            let mut old = Input::new(&frame[PREFIX_BYTES..]);
            Head::read(&mut old).unwrap();
            body.extend_from_slice(old.rest());
            frame.truncate(0);
            frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
            frame.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
            frame.extend_from_slice(&body);
            assert_eq!(read(&frame), (vec![], Next::Damaged), "{raw_bytes}");
        }
    }

    #[test]
    fn cut_and_damaged_frames_are_told_apart() {
        let two = frames(&[b"first", b"second"]);
        let whole = two.concat();
        for cut in 1..two[1].len() {
            let (frames, end) = read(&whole[..two[0].len() + cut]);
            assert_eq!(frames, [b"first"]);
            assert_eq!(end, Next::Cut(cut as u64));
        }
        for place in 4..two[1].len() {
            let mut bytes = whole.clone();
            bytes[two[0].len() + place] ^= 0x10;
            assert_eq!(read(&bytes), (vec![b"first".to_vec()], Next::Damaged), "{place}");
        }
    }

    #[test]
    fn the_start_says_what_it_is() {
        let mut start = Vec::new();
        write_start(&mut start);
        assert_eq!(start.len() as u64, START_BYTES);
        assert_eq!(read_start(&mut &start[..]).unwrap(), VERSION);
        start[8] = 9;
        assert!(matches!(
            read_start(&mut &start[..]),
            Err(StoreError::Newer { found: 9 })
        ));
        assert!(matches!(read_start(&mut &start[..10]), Err(StoreError::NoTick)));
        for bytes in [
            &b""[..],
            b"memwat",
            b"\x7fELF and more of it",
            b"memwatch\0\0\0\0",
        ] {
            assert!(
                matches!(read_start(&mut &bytes[..]), Err(StoreError::NotARecording)),
                "{bytes:?}"
            );
        }
    }
}
