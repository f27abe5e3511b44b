//! The filter as it is typed: words with `*` and `?`, each kept or, after `!`, dropped.

use globset::Glob;

use crate::model::query::Query;

/// Globs over file, function or module of any frame, as in `--include` and `--exclude`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub include: Vec<String>,
    pub exclude: Vec<String>,
}

impl Filter {
    pub fn of(query: &Query) -> Self {
        Self {
            include: query.include.clone(),
            exclude: query.exclude.clone(),
        }
    }

    /// A word without any glob character means "has this in it". The error is one line for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        for word in text.split_whitespace() {
            let (globs, word) = match word.strip_prefix('!') {
                Some(rest) => (&mut filter.exclude, rest),
                None => (&mut filter.include, word),
            };
            if word.is_empty() {
                return Err("after `!` goes a word or glob to leave out, such as !*/json/*".to_owned());
            }
            let glob = if word.contains(['*', '?', '[', '{']) {
                word.to_owned()
            } else {
                format!("*{word}*")
            };
            if let Err(error) = Glob::new(&glob) {
                return Err(format!("`{word}` is not a glob: {}", error.kind()));
            }
            globs.push(glob);
        }
        Ok(filter)
    }

    /// What to type to get this filter.
    pub fn text(&self) -> String {
        let include = self.include.iter().cloned();
        let exclude = self.exclude.iter().map(|glob| format!("!{glob}"));
        include.chain(exclude).collect::<Vec<_>>().join(" ")
    }

    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_globs_and_read_back_the_same() {
        let filter = Filter::parse(" cache  */app/*.py !json").unwrap();
        assert_eq!(filter.include, ["*cache*", "*/app/*.py"]);
        assert_eq!(filter.exclude, ["*json*"]);
        assert_eq!(Filter::parse(&filter.text()), Ok(filter));
        assert!(Filter::parse("   ").unwrap().is_empty());
    }

    #[test]
    fn what_is_not_a_glob_is_refused_with_a_reason() {
        let error = Filter::parse("a[").unwrap_err();
        assert!(error.starts_with("`a[` is not a glob: "), "{error}");
        assert!(Filter::parse("x !").is_err());
    }
}
