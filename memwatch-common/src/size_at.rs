//! Where code that was compiled has the size of what it asks an allocator for.

/// Where a number is. Registers are numbered as x86-64 does: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    Register(u8),
    /// In the word that is so many bytes from where this register points to.
    Memory(u8, i16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SizeAt {
    Constant(u16),
    In(Place),
    /// A number and a size.
    Product(Place, Place),
}

/// A number, as the kernel side knows it: the kind, and 12 bits by the kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct SizeWord(pub u16);

/// The 12 bits are the number.
pub const CONSTANT: u16 = 0;
/// The lowest four are a register.
pub const REGISTER: u16 = 1;
/// The lowest eight are a distance in words, with a sign; above it is the register.
pub const MEMORY: u16 = 2;
/// Two registers, to be multiplied.
pub const PRODUCT: u16 = 3;

const KIND_SHIFT: u32 = 12;
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
    pub const BITS: u32 = KIND_SHIFT + 2;

    const fn of(kind: u16, bits: u16) -> Self {
        Self(kind << KIND_SHIFT | bits)
    }

    #[inline]
    pub const fn kind(self) -> u16 {
        self.0 >> KIND_SHIFT
    }

    #[inline]
    pub const fn constant(self) -> u16 {
        self.0 & 0xfff
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

    /// Of a word in memory.
    #[inline]
    pub const fn base(self) -> u8 {
        (self.0 >> 8 & 15) as u8
    }

    #[inline]
    pub const fn distance(self) -> i16 {
        (self.0 as u8 as i8) as i16 * WORD
    }
}

impl Place {
    const fn word(self) -> Option<SizeWord> {
        match self {
            Self::Register(register) => Some(SizeWord::of(REGISTER, register as u16 & 15)),
            Self::Memory(register, distance) => {
                let words = distance / WORD;
                if distance % WORD != 0 || words < i8::MIN as i16 || words > i8::MAX as i16 {
                    return None;
                }
                let bits = (register as u16 & 15) << 8 | words as i8 as u8 as u16;
                Some(SizeWord::of(MEMORY, bits))
            }
        }
    }
}

impl SizeAt {
    /// As one number, if that can be.
    pub const fn word(self) -> Option<SizeWord> {
        match self {
            Self::Constant(size) if size < 1 << KIND_SHIFT => Some(SizeWord::of(CONSTANT, size)),
            Self::In(place) => place.word(),
            Self::Product(Place::Register(number), Place::Register(size)) => Some(SizeWord::of(
                PRODUCT,
                (number as u16 & 15) << 4 | size as u16 & 15,
            )),
            Self::Constant(_) | Self::Product(..) => None,
        }
    }

    /// As one or two; none if it is too far away.
    pub const fn words(self) -> Option<SizeWords> {
        let (first, second) = match self {
            Self::Product(number, size) => (number.word(), size.word()),
            _ => (self.word(), Some(SizeWord(0))),
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

    const STACK: Place = Place::Memory(4, -1024);

    #[test]
    fn a_word_says_what_was_put_in() {
        let word = SizeAt::Constant(512).word().unwrap();
        assert_eq!((word.kind(), word.constant()), (CONSTANT, 512));
        let word = SizeAt::In(Place::Register(15)).word().unwrap();
        assert_eq!((word.kind(), word.register()), (REGISTER, 15));
        let word = SizeAt::In(STACK).word().unwrap();
        assert_eq!((word.kind(), word.base(), word.distance()), (MEMORY, 4, -1024));
        let product = SizeAt::Product(Place::Register(3), Place::Register(12));
        let word = product.word().unwrap();
        assert_eq!(
            (word.kind(), word.first_register(), word.register()),
            (PRODUCT, 3, 12)
        );
        for size in [
            SizeAt::In(STACK),
            product,
            SizeAt::Constant(4095),
            SizeAt::In(Place::Memory(5, 1016)),
        ] {
            assert!(size.word().unwrap().0 < 1 << SizeWord::BITS);
        }
    }

    #[test]
    fn what_is_too_far_away_has_no_word() {
        for distance in [-1032, 1024, 4] {
            assert_eq!(SizeAt::In(Place::Memory(4, distance)).word(), None);
        }
        assert_eq!(SizeAt::Constant(4096).word(), None);
        assert_eq!(SizeAt::Product(STACK, Place::Register(1)).word(), None);
        let words = SizeAt::Product(STACK, Place::Register(1)).words().unwrap();
        assert_eq!((words.first.kind(), words.second.kind()), (MEMORY, REGISTER));
    }
}
