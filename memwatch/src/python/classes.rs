//! Size classes of CPython's allocators, in one row of numbers: pymalloc's, then those of mimalloc's pages.
//!
//! Blocks of one class share pools (mimalloc calls them pages), blocks of different ones never do.

use memwatch_common::hist::size_bucket;
use memwatch_common::python::POOL_BYTES;

use super::pymalloc;

/// One more than the largest class.
pub const CLASSES: usize = 256;

/// Heaps of each thread in mimalloc; they share no pages.
pub const HEAPS: u8 = 4;

/// Largest block in a page of 64 KiB.
const SMALL_BYTES: u64 = 16 << 10;

/// Largest block that shares a page (of 512 KiB) with others.
const SHARED_BYTES: u64 = 128 << 10;

const SMALL_PAGE: u64 = 64 << 10;
const MEDIUM_PAGE: u64 = 512 << 10;

/// What a block of pymalloc may be larger than was asked for.
const SPARE: u64 = pymalloc::ALIGNMENT - 1;

const FIRST_OF_PAGES: u8 = pymalloc::SIZE_CLASSES as u8;

/// mimalloc's sizes of blocks that share pages.
const SIZES: u8 = 49;

/// By the power of two.
const FIRST_ALONE: u8 = FIRST_OF_PAGES + SIZES * HEAPS;

/// The class of a page of mimalloc. `None`: it has no blocks of that size.
pub fn of_page(heap: u8, block_bytes: u64) -> Option<u8> {
    if heap >= HEAPS {
        return None;
    }
    if block_bytes > SHARED_BYTES {
        let bucket = size_bucket(block_bytes) - size_bucket(SHARED_BYTES);
        return u8::try_from(bucket).ok()?.checked_add(FIRST_ALONE);
    }
    let size = (0..SIZES).find(|size| shared_bytes(*size) >= block_bytes)?;
    (shared_bytes(size) == block_bytes).then_some(FIRST_OF_PAGES + heap * SIZES + size)
}

/// 8, 16, 32, 48, 64, and from there on four sizes from each power of two to the next.
const fn shared_bytes(size: u8) -> u64 {
    match size {
        0 => 8,
        1..=4 => size as u64 * 16,
        _ => {
            let (power, quarter) = ((size - 5) / 4, (size - 5) % 4);
            (5 + quarter as u64) << (power + 4)
        }
    }
}

/// All of them, small to large.
pub fn shared_sizes() -> impl Iterator<Item = u64> {
    (0..SIZES).map(shared_bytes)
}

enum Kind {
    Pymalloc(usize),
    Shared(u8),
    /// Each block has a page of its own.
    Alone,
}

const fn kind(class: u8) -> Kind {
    if class < FIRST_OF_PAGES {
        Kind::Pymalloc(class as usize)
    } else if class < FIRST_ALONE {
        Kind::Shared((class - FIRST_OF_PAGES) % SIZES)
    } else {
        Kind::Alone
    }
}

/// Whether several blocks, and so several stacks, can be in one pool.
pub const fn is_shared(class: u8) -> bool {
    !matches!(kind(class), Kind::Alone)
}

/// Bytes of a pool of shared blocks.
pub const fn pool_bytes(class: u8) -> u64 {
    match kind(class) {
        Kind::Pymalloc(_) => POOL_BYTES,
        Kind::Shared(size) if shared_bytes(size) <= SMALL_BYTES => SMALL_PAGE,
        Kind::Shared(_) | Kind::Alone => MEDIUM_PAGE,
    }
}

/// How much of `bytes` may not have been asked for, beyond the 15 bytes of each block that pymalloc may add.
pub const fn spare(class: u8, bytes: u64) -> u64 {
    match kind(class) {
        Kind::Pymalloc(_) | Kind::Shared(0) => 0,
        Kind::Shared(size) => {
            let block = shared_bytes(size);
            let most = block - shared_bytes(size - 1) - 1;
            bytes / block * most.saturating_sub(SPARE)
        }
        // Their pages are multiples of 64 KiB, above 512 KiB of that; the block is rounded before, too.
        Kind::Alone => match class - FIRST_ALONE {
            0 => bytes / 3,
            1 | 4 => bytes / 4,
            3 => bytes / 2,
            _ => bytes / 8,
        },
    }
}

/// Whether a block of a class that takes so much may have been asked for with `asked` bytes.
pub fn fits(class: usize, takes: u64, asked: u64) -> bool {
    let Ok(class) = u8::try_from(class) else {
        return false;
    };
    let least = match kind(class) {
        Kind::Pymalloc(_) => takes.saturating_sub(pymalloc::ALIGNMENT),
        Kind::Shared(0) => 0,
        Kind::Shared(size) => shared_bytes(size - 1),
        Kind::Alone => takes / 2,
    };
    asked > least && asked <= takes
}

/// Whether blocks of a class count in a bucket of sizes.
pub const fn is_in_bucket(class: u8, bucket: usize) -> bool {
    let class_bucket = match kind(class) {
        Kind::Pymalloc(class) => size_bucket(pymalloc::block_bytes(class)),
        Kind::Shared(size) => size_bucket(shared_bytes(size)),
        Kind::Alone => size_bucket(SHARED_BYTES) + (class - FIRST_ALONE) as usize,
    };
    class_bucket == bucket
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// As mimalloc's `_mi_heap_empty` lists them, in words of 8 bytes.
    const WORDS: [u64; 49] = [
        1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256,
        320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144,
        7168, 8192, 10240, 12288, 14336, 16384,
    ];

    #[test]
    fn the_sizes_are_mimallocs() {
        let sizes: Vec<u64> = (0..SIZES).map(|size| shared_bytes(size) / 8).collect();
        assert_eq!(sizes, WORDS);
        assert_eq!(shared_bytes(SIZES - 1), SHARED_BYTES);
    }

    #[test]
    fn each_heap_and_size_has_a_class_of_its_own() {
        let mut seen: BTreeSet<u8> = (0..FIRST_OF_PAGES).collect();
        for heap in 0..HEAPS {
            for words in WORDS {
                let class = of_page(heap, words * 8).unwrap();
                assert!(seen.insert(class), "{heap} {words}");
                assert!(is_shared(class));
                assert!(is_in_bucket(class, size_bucket(words * 8)));
                assert!(!is_in_bucket(class, size_bucket(words * 8) + 1));
            }
        }
        for bytes in [SHARED_BYTES + 4096, 1 << 20, 16 << 20, u64::MAX] {
            let class = of_page(0, bytes).unwrap();
            assert!(seen.insert(class), "{bytes}");
            assert!(!is_shared(class));
            assert!(is_in_bucket(class, size_bucket(bytes)), "{bytes}");
        }
        for bytes in [0, 1, 24, 72, 88, SHARED_BYTES - 8] {
            assert_eq!(of_page(0, bytes), None, "{bytes}");
        }
        assert_eq!(of_page(HEAPS, 64), None);
    }

    #[test]
    fn what_was_asked_for_is_within_what_is_spared() {
        // The most that a block of each size can have beyond what was asked for.
        for pair in WORDS.windows(2) {
            let (smaller, block) = (pair[0] * 8, pair[1] * 8);
            let class = of_page(1, block).unwrap();
            let asked = smaller + 1;
            assert!(block - 15 - spare(class, block) <= asked, "{block}");
            assert_eq!(spare(class, block * 10), 10 * spare(class, block));
        }
        assert_eq!(
            (0..FIRST_OF_PAGES)
                .map(|class| spare(class, 1 << 20))
                .sum::<u64>(),
            0
        );
        // As `mi_segments_page_alloc` and `_mi_os_good_alloc_size` round.
        for asked in (17..=400)
            .map(|slices| (slices << 16) / 2 + 1)
            .filter(|asked| *asked > SHARED_BYTES)
        {
            let step = match asked {
                ..=0x8_0000 => 64 << 10,
                0x8_0001..=0x80_0000 => 512 << 10,
                _ => 1 << 20,
            };
            let takes = u64::next_multiple_of(asked, step);
            let class = of_page(2, takes).unwrap();
            assert!(takes - spare(class, takes) <= asked, "{asked}");
        }
    }

    #[test]
    fn pools_are_as_large_as_pymallocs_and_mimallocs() {
        assert_eq!(pool_bytes(0), 16 << 10);
        assert_eq!(pool_bytes(of_page(3, 16 << 10).unwrap()), 64 << 10);
        assert_eq!(pool_bytes(of_page(3, 20 << 10).unwrap()), 512 << 10);
    }
}
