//! Counting votes: which version of something most have.

/// Versions of something, each with those who have it, in the order in which they came up.
#[derive(Debug)]
pub(crate) struct Versions<T> {
    versions: Vec<(T, Vec<usize>)>,
}

impl<T> Versions<T> {
    /// Count `votes`: of each who votes, the number and the version; `is_same` tells whether two are the same.
    pub(crate) fn count(votes: impl Iterator<Item = (usize, T)>, is_same: impl Fn(&T, &T) -> bool) -> Self {
        let mut versions: Vec<(T, Vec<usize>)> = Vec::new();
        for (voter, version) in votes {
            match versions.iter_mut().find(|(other, _)| is_same(other, &version)) {
                Some((_, voters)) => voters.push(voter),
                None => versions.push((version, vec![voter])),
            }
        }
        Self { versions }
    }

    /// The version that most have, and who. Of several the one that came up last, as in QEMU.
    pub(crate) fn winner(&self) -> Option<(&T, &[usize])> {
        self.versions.iter().max_by_key(|(_, voters)| voters.len()).map(|(version, voters)| (version, &**voters))
    }

    /// Those who have another version than the winner, version by version.
    pub(crate) fn losers(&self) -> Vec<usize> {
        let Some((_, winners)) = self.winner() else { return Vec::new() };
        self.versions.iter().flat_map(|(_, voters)| voters).copied().filter(|voter| !winners.contains(voter)).collect()
    }

    /// Whether there is not more than one.
    pub(crate) fn is_unanimous(&self) -> bool {
        self.versions.len() < 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(votes: &str, winner: Option<(char, &[usize])>, losers: &[usize]) {
        let versions = Versions::count(votes.chars().enumerate(), |one, other| one == other);
        assert_eq!(versions.winner().map(|(version, voters)| (*version, voters)), winner, "{votes}");
        assert_eq!(versions.losers(), losers, "{votes}");
        assert_eq!(versions.is_unanimous(), losers.is_empty());
    }

    #[test]
    fn most_votes_win_and_of_equals_the_last() {
        check("", None, &[]);
        check("aaa", Some(('a', &[0, 1, 2])), &[]);
        check("aba", Some(('a', &[0, 2])), &[1]);
        check("abc", Some(('c', &[2])), &[0, 1]);
        check("abab", Some(('b', &[1, 3])), &[0, 2]);
        check("abbcca", Some(('c', &[3, 4])), &[0, 5, 1, 2]);
    }
}
