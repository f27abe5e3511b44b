//! A table as bytes of a file.
//!
//! A head of fixed size (magic number, version, whose table it is, how many parts there are, a checksum), then rules,
//! pages and rows, all in little endian.

use memwatch_common::unwind::{Page, Row, Rule};

use super::{Table, fingerprint::Fingerprint, stats::TableStats, table::TablePage};

/// One up with every change of these bytes, of what rules mean, or of what a table is built from.
const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"memwrows";

const HEAD: usize = 8 + 4 + 32 + 3 * 4 + 4;
const RULE: usize = 16;
const PAGE: usize = 12;
const ROW: usize = 4;

pub(super) fn write(table: &Table, fingerprint: &Fingerprint) -> Vec<u8> {
    let size = HEAD + table.rules.len() * RULE + table.pages.len() * PAGE + table.rows.len() * ROW;
    let mut bytes = Vec::with_capacity(size);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(fingerprint.digest);
    for count in [table.rules.len(), table.pages.len(), table.rows.len()] {
        bytes.extend((count as u32).to_le_bytes());
    }
    bytes.extend([0; 4]);
    for rule in &table.rules {
        bytes.extend([rule.cfa_kind, rule.rbp_kind, rule.ra_kind, rule.register]);
        bytes.extend(rule.cfa_offset.to_le_bytes());
        for number in [rule.cfa_add, rule.rbp_offset, rule.ra_offset] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(rule.reserved.to_le_bytes());
    }
    for &TablePage { page, rows } in &table.pages {
        for number in [page, rows.first_row, rows.count] {
            bytes.extend(number.to_le_bytes());
        }
    }
    for row in &table.rows {
        bytes.extend(row.pc_low.to_le_bytes());
        bytes.extend(row.rule.to_le_bytes());
    }
    let checksum = checksum(&bytes);
    bytes[HEAD - 4..HEAD].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Of everything but itself.
fn checksum(bytes: &[u8]) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(&bytes[..HEAD - 4]);
    hash.update(&bytes[HEAD..]);
    hash.finalize()
}

/// None when these are not the bytes of this file's table.
pub(super) fn read(bytes: &[u8], fingerprint: &Fingerprint) -> Option<Table> {
    let mut head = bytes.get(..HEAD)?;
    if take(&mut head, 8)? != MAGIC
        || number(&mut head)? != VERSION
        || take(&mut head, 32)? != fingerprint.digest
    {
        return None;
    }
    let (rules, pages, rows) = (number(&mut head)?, number(&mut head)?, number(&mut head)?);
    if number(&mut head)? != checksum(bytes) {
        return None;
    }
    let mut rest = &bytes[HEAD..];
    let rules = parts::<RULE>(&mut rest, rules)?;
    let pages = parts::<PAGE>(&mut rest, pages)?;
    let rows = parts::<ROW>(&mut rest, rows)?;
    if !rest.is_empty() {
        return None;
    }
    let table = Table {
        segments: Vec::new(),
        pages: pages.iter().map(page).collect(),
        rows: rows.iter().copied().map(row).collect(),
        rules: rules.iter().map(rule).collect(),
        stats: TableStats::default(),
    };
    table.check().is_ok().then_some(table)
}

fn take<'a>(from: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(bytes)?;
    *from = rest;
    Some(taken)
}

fn number(from: &mut &[u8]) -> Option<u32> {
    take(from, 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn parts<'a, const N: usize>(from: &mut &'a [u8], count: u32) -> Option<&'a [[u8; N]]> {
    let bytes = (count as usize).checked_mul(N)?;
    Some(take(from, bytes)?.as_chunks().0)
}

fn rule(bytes: &[u8; RULE]) -> Rule {
    let half = |at: usize| i16::from_le_bytes([bytes[at], bytes[at + 1]]);
    Rule {
        cfa_kind: bytes[0],
        rbp_kind: bytes[1],
        ra_kind: bytes[2],
        register: bytes[3],
        cfa_offset: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        cfa_add: half(8),
        rbp_offset: half(10),
        ra_offset: half(12),
        reserved: half(14) as u16,
    }
}

fn page(bytes: &[u8; PAGE]) -> TablePage {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    TablePage {
        page: word(0),
        rows: Page {
            first_row: word(4),
            count: word(8),
        },
    }
}

fn row(bytes: [u8; ROW]) -> Row {
    Row {
        pc_low: u16::from_le_bytes([bytes[0], bytes[1]]),
        rule: u16::from_le_bytes([bytes[2], bytes[3]]),
    }
}
