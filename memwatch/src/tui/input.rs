//! From keys to what they mean. Which key does what is decided here and nowhere else.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// What the keys go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Table,
    /// A filter is being typed.
    Filter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Quit,
    /// Leaves what lies over the table, or memwatch when nothing does.
    Back,
    Move(Move),
    /// To the row before or after, also while the stack fills the screen.
    Neighbour(Direction),
    ToggleDetail,
    Sort(Direction),
    /// Counted from 0.
    SortNumber(usize),
    Group(Direction),
    ToggleView,
    ToggleCumulative,
    EditFilter,
    TogglePause,
    SetBaseline,
    ClearBaseline,
    FreezeJson,
    FreezeText,
    ToggleHelp,
    /// In a recording: to another tick.
    Time(Step),
    Edit(Edit),
}

/// How far to go in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Tick(Direction),
    /// A twentieth of the recording.
    Part(Direction),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Next,
    Previous,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
}

/// Typing in the filter line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    Insert(char),
    Backspace,
    DeleteWord,
    Clear,
    Apply,
    Cancel,
}

pub fn action(key: KeyEvent, mode: Mode) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    if control && key.code == KeyCode::Char('c') {
        return Some(Action::Quit);
    }
    // With Alt, terminals send what belongs to menus and window managers.
    if key.modifiers.contains(KeyModifiers::ALT) {
        return None;
    }
    match mode {
        Mode::Filter => edit(key.code, control).map(Action::Edit),
        Mode::Table if control => scroll(key.code),
        Mode::Table => command(key.code),
    }
}

const fn edit(code: KeyCode, control: bool) -> Option<Edit> {
    Some(match code {
        KeyCode::Enter => Edit::Apply,
        KeyCode::Esc => Edit::Cancel,
        KeyCode::Backspace => Edit::Backspace,
        KeyCode::Char('w') if control => Edit::DeleteWord,
        KeyCode::Char('u') if control => Edit::Clear,
        KeyCode::Char('h') if control => Edit::Backspace,
        KeyCode::Char(c) if !control => Edit::Insert(c),
        _ => return None,
    })
}

/// The keys of `less` and `vi`.
const fn scroll(code: KeyCode) -> Option<Action> {
    Some(Action::Move(match code {
        KeyCode::Char('d' | 'f') => Move::PageDown,
        KeyCode::Char('u' | 'b') => Move::PageUp,
        KeyCode::Char('n') => Move::Down,
        KeyCode::Char('p') => Move::Up,
        _ => return None,
    }))
}

const fn command(code: KeyCode) -> Option<Action> {
    Some(match code {
        KeyCode::Char('q') => Action::Quit,
        KeyCode::Esc => Action::Back,
        KeyCode::Up | KeyCode::Char('k') => Action::Move(Move::Up),
        KeyCode::Down | KeyCode::Char('j') => Action::Move(Move::Down),
        KeyCode::PageUp => Action::Move(Move::PageUp),
        KeyCode::PageDown => Action::Move(Move::PageDown),
        KeyCode::Home => Action::Move(Move::First),
        KeyCode::End => Action::Move(Move::Last),
        KeyCode::Left => Action::Neighbour(Direction::Previous),
        KeyCode::Right => Action::Neighbour(Direction::Next),
        KeyCode::Enter => Action::ToggleDetail,
        KeyCode::Char('s' | '>') => Action::Sort(Direction::Next),
        KeyCode::Char('S' | '<') => Action::Sort(Direction::Previous),
        KeyCode::Char(c @ '1'..='9') => Action::SortNumber(c as usize - '1' as usize),
        KeyCode::Char('g') => Action::Group(Direction::Next),
        KeyCode::Char('G') => Action::Group(Direction::Previous),
        KeyCode::Char('a') => Action::ToggleView,
        KeyCode::Char('c') => Action::ToggleCumulative,
        KeyCode::Char('/') => Action::EditFilter,
        KeyCode::Char(' ') => Action::TogglePause,
        KeyCode::Char('b') => Action::SetBaseline,
        KeyCode::Char('B') => Action::ClearBaseline,
        KeyCode::Char('f') => Action::FreezeJson,
        KeyCode::Char('F') => Action::FreezeText,
        KeyCode::Char('[') => Action::Time(Step::Tick(Direction::Previous)),
        KeyCode::Char(']') => Action::Time(Step::Tick(Direction::Next)),
        KeyCode::Char('{') => Action::Time(Step::Part(Direction::Previous)),
        KeyCode::Char('}') => Action::Time(Step::Part(Direction::Next)),
        KeyCode::Char('h' | '?') | KeyCode::F(1) => Action::ToggleHelp,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(code: KeyCode) -> KeyEvent {
        KeyEvent::new(code, KeyModifiers::NONE)
    }

    fn control(c: char) -> KeyEvent {
        KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL)
    }

    #[test]
    fn keys_of_the_table() {
        let cases = [
            (press(KeyCode::Char('q')), Action::Quit),
            (press(KeyCode::Esc), Action::Back),
            (control('c'), Action::Quit),
            (press(KeyCode::Char('j')), Action::Move(Move::Down)),
            (press(KeyCode::Up), Action::Move(Move::Up)),
            (control('d'), Action::Move(Move::PageDown)),
            (press(KeyCode::End), Action::Move(Move::Last)),
            (press(KeyCode::Enter), Action::ToggleDetail),
            (press(KeyCode::Char('<')), Action::Sort(Direction::Previous)),
            (press(KeyCode::Char('3')), Action::SortNumber(2)),
            (press(KeyCode::Char('g')), Action::Group(Direction::Next)),
            (press(KeyCode::Char('?')), Action::ToggleHelp),
            (press(KeyCode::Char(' ')), Action::TogglePause),
            (press(KeyCode::Char('b')), Action::SetBaseline),
            (
                press(KeyCode::Char(']')),
                Action::Time(Step::Tick(Direction::Next)),
            ),
            (
                press(KeyCode::Char('{')),
                Action::Time(Step::Part(Direction::Previous)),
            ),
            (
                KeyEvent::new(KeyCode::Char('B'), KeyModifiers::SHIFT),
                Action::ClearBaseline,
            ),
        ];
        for (key, expected) in cases {
            assert_eq!(action(key, Mode::Table), Some(expected), "{key:?}");
        }
        assert_eq!(action(press(KeyCode::Char('0')), Mode::Table), None);
        assert_eq!(action(press(KeyCode::F(7)), Mode::Table), None);
    }

    #[test]
    fn letters_are_text_while_a_filter_is_typed_but_control_c_still_quits() {
        let cases = [
            (press(KeyCode::Char('q')), Action::Edit(Edit::Insert('q'))),
            (press(KeyCode::Char(' ')), Action::Edit(Edit::Insert(' '))),
            (press(KeyCode::Backspace), Action::Edit(Edit::Backspace)),
            (control('w'), Action::Edit(Edit::DeleteWord)),
            (control('u'), Action::Edit(Edit::Clear)),
            (press(KeyCode::Enter), Action::Edit(Edit::Apply)),
            (press(KeyCode::Esc), Action::Edit(Edit::Cancel)),
            (control('c'), Action::Quit),
        ];
        for (key, expected) in cases {
            assert_eq!(action(key, Mode::Filter), Some(expected), "{key:?}");
        }
        assert_eq!(action(press(KeyCode::Up), Mode::Filter), None);
    }

    #[test]
    fn releases_and_keys_held_with_alt_do_nothing() {
        let mut release = press(KeyCode::Char('q'));
        release.kind = KeyEventKind::Release;
        assert_eq!(action(release, Mode::Table), None);
        assert_eq!(
            action(KeyEvent::new(KeyCode::Char('q'), KeyModifiers::ALT), Mode::Table),
            None
        );
    }
}
