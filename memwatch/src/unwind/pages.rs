//! Laying out rows in pages.

use memwatch_common::unwind::{PAGE_SHIFT, Page, RULE_NONE, RULE_UNSUPPORTED, Row};

use super::collect::{Draft, Span};
use super::table::TablePage;

#[derive(Debug, Default)]
pub(super) struct Paged {
    pub pages: Vec<TablePage>,
    pub rows: Vec<Row>,
    pub covered_bytes: u64,
    page: u32,
    /// The rule at the end of what has been laid out, and where it began.
    rule: u16,
    since: u64,
}

/// `spans` are sorted and do not overlap.
pub(super) fn lay_out(spans: &[Span], drafts: &[Draft]) -> Paged {
    let mut paged = Paged {
        rows: Vec::with_capacity(drafts.len() + spans.len()),
        ..Paged::default()
    };
    let mut spans = spans.iter().peekable();
    while let Some(span) = spans.next() {
        let of_span = &drafts[span.first..][..span.count];
        for draft in of_span {
            let address = span.start + u64::from(draft.delta);
            if address >= span.end {
                break;
            }
            paged.from(address, draft.rule);
        }
        if spans.peek().is_none_or(|next| next.start > span.end) {
            paged.from(span.end, RULE_NONE);
        }
    }
    paged.close_page();
    paged
}

impl Paged {
    /// From `address` on, `rule` holds.
    fn from(&mut self, address: u64, rule: u16) {
        if rule == self.rule {
            return;
        }
        if self.rule != RULE_NONE && self.rule != RULE_UNSUPPORTED {
            self.covered_bytes += address - self.since;
        }
        self.since = address;
        let page = (address >> PAGE_SHIFT) as u32;
        let pc_low = address as u16;
        while self.page < page && self.rule != RULE_NONE {
            self.open_page(self.page + 1);
            if self.page < page || pc_low > 0 {
                self.rows.push(Row {
                    pc_low: 0,
                    rule: self.rule,
                });
            }
        }
        if self.page < page {
            self.open_page(page);
        }
        // A page that begins with nothing known needs no row for that.
        if rule != RULE_NONE || pc_low > 0 {
            self.rows.push(Row { pc_low, rule });
        }
        self.rule = rule;
    }

    fn open_page(&mut self, page: u32) {
        self.close_page();
        self.page = page;
    }

    fn close_page(&mut self) {
        let first_row = self
            .pages
            .last()
            .map_or(0, |last| last.rows.first_row + last.rows.count);
        let count = self.rows.len() as u32 - first_row;
        if count > 0 {
            self.pages.push(TablePage {
                page: self.page,
                rows: Page { first_row, count },
            });
        }
    }
}
