//! Makes small ELF files, right and wrong ones.

/// A symbol: name, type and binding as in `st_info`, where its code begins in `.text`, size.
pub type Symbol<'a> = (&'a str, u8, usize, u64);

pub const GLOBAL_FUNCTION: u8 = 0x12;
pub const LOCAL_FUNCTION: u8 = 0x02;
pub const INDIRECT_FUNCTION: u8 = 0x1a;

/// Where `.text` lies in the file and in memory: what differs shows which one was used.
pub const TEXT_OFFSET: u64 = 0x200;
pub const TEXT_ADDRESS: u64 = 0x40_1200;

/// A static program with `text` as its code, `symbols`, and an empty section `extra`.
pub fn program(machine: u16, text: &[u8], symbols: &[Symbol<'_>], extra: &str) -> Vec<u8> {
    let mut strings = vec![0];
    let mut table = vec![0; 24];
    for &(name, info, start, size) in symbols {
        table.extend((strings.len() as u32).to_le_bytes());
        table.extend([info, 0, 1, 0]);
        table.extend((TEXT_ADDRESS + start as u64).to_le_bytes());
        table.extend(size.to_le_bytes());
        strings.extend(name.as_bytes());
        strings.push(0);
    }
    let mut names = b"\0.text\0.symtab\0.strtab\0.shstrtab\0".to_vec();
    let extra_name = names.len() as u32;
    names.extend(extra.as_bytes());
    names.push(0);

    let mut file = vec![0; TEXT_OFFSET as usize];
    file.extend(text);
    let mut place = |part: &[u8]| {
        file.resize(file.len().next_multiple_of(8), 0);
        let start = file.len() as u64;
        file.extend(part);
        (start, part.len() as u64)
    };
    let (table, strings, names) = (place(&table), place(&strings), place(&names));
    let (sections_at, _) = place(&[0; 64]);
    let text_at = (TEXT_OFFSET, text.len() as u64);
    // name, type, flags, address, place, link, entry size
    for (name, kind, flags, address, (start, size), link, entry) in [
        (1, 1, 6, TEXT_ADDRESS, text_at, 0, 0),
        (7, 2, 0, 0, table, 3, 24),
        (15, 3, 0, 0, strings, 0, 0),
        (23, 3, 0, 0, names, 0, 0),
        (extra_name, 1, 2, 0, (TEXT_OFFSET, 0), 0, 0),
    ] {
        let words: [(u64, usize); 10] = [
            (u64::from(name), 4),
            (kind, 4),
            (flags, 8),
            (address, 8),
            (start, 8),
            (size, 8),
            (link, 4),
            (0, 4),
            (1, 8),
            (entry, 8),
        ];
        for (word, size) in words {
            file.extend(&word.to_le_bytes()[..size]);
        }
    }
    let header = header(machine, sections_at, text.len() as u64);
    file[..header.len()].copy_from_slice(&header);
    file
}

fn header(machine: u16, sections_at: u64, text: u64) -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend([2, 0]);
    header.extend(machine.to_le_bytes());
    header.extend(1_u32.to_le_bytes());
    for word in [TEXT_ADDRESS, 64, sections_at] {
        header.extend(word.to_le_bytes());
    }
    header.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 6, 4] {
        header.extend(half.to_le_bytes());
    }
    // One PT_LOAD, readable and executable.
    header.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [TEXT_OFFSET, TEXT_ADDRESS, TEXT_ADDRESS, text, text, 0x1000] {
        header.extend(word.to_le_bytes());
    }
    header
}
