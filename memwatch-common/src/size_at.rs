//! Where code that was compiled has the size of what it asks an allocator for.

/// Where a number is. Registers are numbered as x86-64 does: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// It is this.
    Constant(u16),
    Register(u8),
    /// In the word that is so many bytes from where this register points to.
    Memory(u8, i16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SizeAt {
    In(Place),
    /// A number and a size.
    Product(Place, Place),
}

/// A number, as the kernel side knows it: the kind, and 11 bits by the kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct SizeWord(pub u16);

/// The 11 bits are the number.
pub const CONSTANT: u16 = 0;
/// The lowest four are a register.
pub const REGISTER: u16 = 1;
/// The lowest seven are a distance in words, with a sign; above it is the register.
pub const MEMORY: u16 = 2;
/// Two registers, to be multiplied.
pub const PRODUCT: u16 = 3;
/// A register, and in the lowest seven bits what it is multiplied by.
pub const SCALED: u16 = 4;

const KIND_SHIFT: u32 = 11;
const LOW_BITS: u32 = 7;
const LOW: u16 = (1 << LOW_BITS) - 1;
const WORD: i16 = 8;

/// A size as the kernel side knows it: one number, or two to be multiplied if the second is not 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SizeWords {
    pub first: SizeWord,
    pub second: SizeWord,
}

const _: () = assert!(size_of::<SizeWords>() == 4);

impl SizeWord {
    /// So many bits are used.
    pub const BITS: u32 = KIND_SHIFT + 3;

    const fn of(kind: u16, bits: u16) -> Self {
        Self(kind << KIND_SHIFT | bits)
    }

    #[inline]
    pub const fn kind(self) -> u16 {
        self.0 >> KIND_SHIFT
    }

    #[inline]
    pub const fn constant(self) -> u16 {
        self.0 & ((1 << KIND_SHIFT) - 1)
    }

    /// The only register, or the second.
    #[inline]
    pub const fn register(self) -> u8 {
        (self.0 & 15) as u8
    }

    #[inline]
    pub const fn first_register(self) -> u8 {
        (self.0 >> 4 & 15) as u8
    }

    /// The register that points to memory, or is multiplied.
    #[inline]
    pub const fn base(self) -> u8 {
        (self.0 >> LOW_BITS & 15) as u8
    }

    #[inline]
    pub const fn factor(self) -> u16 {
        self.0 & LOW
    }

    #[inline]
    pub const fn distance(self) -> i16 {
        // The sign is moved to where it is in a byte, and back.
        ((self.factor() << 1) as u8 as i8 >> 1) as i16 * WORD
    }
}

impl Place {
    const fn word(self) -> Option<SizeWord> {
        match self {
            Self::Constant(size) if size < 1 << KIND_SHIFT => Some(SizeWord::of(CONSTANT, size)),
            Self::Constant(_) => None,
            Self::Register(register) => Some(SizeWord::of(REGISTER, register as u16 & 15)),
            Self::Memory(register, distance) => {
                let words = distance / WORD;
                if distance % WORD != 0 || words < -64 || words > 63 {
                    return None;
                }
                let bits = (register as u16 & 15) << LOW_BITS | words as u16 & LOW;
                Some(SizeWord::of(MEMORY, bits))
            }
        }
    }
}

impl SizeAt {
    /// As one number, if that can be.
    pub const fn word(self) -> Option<SizeWord> {
        match self {
            Self::In(place) => place.word(),
            Self::Product(Place::Register(number), Place::Register(size)) => Some(SizeWord::of(
                PRODUCT,
                (number as u16 & 15) << 4 | size as u16 & 15,
            )),
            Self::Product(Place::Register(number), Place::Constant(size)) if size <= LOW => {
                Some(SizeWord::of(SCALED, (number as u16 & 15) << LOW_BITS | size))
            }
            Self::Product(..) => None,
        }
    }

    /// As one or two; none if it is too far away.
    pub const fn words(self) -> Option<SizeWords> {
        let (first, second) = match self {
            Self::Product(number, size) => (number.word(), size.word()),
            Self::In(_) => (self.word(), Some(SizeWord(0))),
        };
        match (first, second) {
            (Some(first), Some(second)) => Some(SizeWords { first, second }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK: Place = Place::Memory(4, -512);
    const fn constant(size: u16) -> SizeAt {
        SizeAt::In(Place::Constant(size))
    }

    #[test]
    fn a_word_says_what_was_put_in() {
        let word = constant(512).word().unwrap();
        assert_eq!((word.kind(), word.constant()), (CONSTANT, 512));
        let word = SizeAt::In(Place::Register(15)).word().unwrap();
        assert_eq!((word.kind(), word.register()), (REGISTER, 15));
        for (register, distance) in [(4, -512), (5, -8), (15, 0), (3, 504)] {
            let word = SizeAt::In(Place::Memory(register, distance)).word().unwrap();
            assert_eq!(
                (word.kind(), word.base(), word.distance()),
                (MEMORY, register, distance)
            );
        }
        let product = SizeAt::Product(Place::Register(3), Place::Register(12));
        let word = product.word().unwrap();
        assert_eq!(
            (word.kind(), word.first_register(), word.register()),
            (PRODUCT, 3, 12)
        );
        let scaled = SizeAt::Product(Place::Register(7), Place::Constant(127));
        let word = scaled.word().unwrap();
        assert_eq!((word.kind(), word.base(), word.factor()), (SCALED, 7, 127));
        for size in [SizeAt::In(STACK), product, scaled, constant(2047)] {
            assert!(size.word().unwrap().0 < 1 << SizeWord::BITS);
        }
    }

    #[test]
    fn what_is_too_far_away_has_no_word() {
        for distance in [-520, 512, 4] {
            assert_eq!(SizeAt::In(Place::Memory(4, distance)).word(), None);
        }
        assert_eq!(constant(2048).word(), None);
        assert_eq!(SizeAt::Product(STACK, Place::Register(1)).word(), None);
        let words = SizeAt::Product(STACK, Place::Constant(200)).words().unwrap();
        assert_eq!((words.first.kind(), words.second.kind()), (MEMORY, CONSTANT));
    }
}
