//! Raw deflate (RFC 1951) that looks back 4 KiB, for clusters: the whole input is there, and so is all the room for the output.
//!
//! The libraries that are fast look back 32 KiB and cannot be told otherwise; those that can be told (zlib and its successors) were made for streams.
//! `docs/qcow2.md` has what was measured.

/// The farthest that a match may lie behind: 1 << 12 bytes.
const WINDOW: usize = 1 << 12;
/// Matches are no shorter and no longer, RFC 1951 section 3.2.5.
const MIN_MATCH: usize = 3;
const MAX_MATCH: usize = 258;
/// How many candidates are looked at for one place.
const DEPTH: usize = 8;
/// Where a match of this length was found, the next place is looked at less.
const GOOD: usize = 8;
/// A match of this length is good enough to be taken without a look at the next place.
const NICE: usize = 32;
/// With more different bytes than these, matches of three bytes pay.
const MANY: usize = 96;
/// In [`Deflate::near`]: farther than anything that is looked at.
const FAR: u32 = 0xffff;
/// Bits of the hashes of three and of four bytes.
const BITS3: u32 = 12;
const BITS4: u32 = 15;
/// So many places are looked at ahead of the one that is worked on, and so many are remembered.
const AHEAD: usize = 2 * WINDOW;
const RING: usize = 4 * WINDOW;
/// Room behind input and output, so that words can be read and written at each of their bytes.
pub(crate) const SLACK: usize = 8;

/// Codes for literals, the end of a block, and lengths, two of which are never used; codes for distances of no more than [`WINDOW`]; codes for the lengths of codes.
const LITERALS: usize = 288;
const DISTANCES: usize = 24;
const PRECODES: usize = 19;
const END: usize = 256;
/// The longest code, and the longest of those that tell the lengths of codes.
const LONGEST: usize = 15;
const PRE_LONGEST: usize = 7;
/// The order in which the lengths of the last stand in a block, section 3.2.7.
const PRE_ORDER: [usize; PRECODES] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
/// So many symbols are counted together; a block is one or several such parts.
const PART: usize = 4096;

/// A literal or a match: what [`Words`] has for the byte or the length in the lowest ten bits, the code of its distance in five bits, and above these the distance's extra
/// bits. So both are written by the same code, which need not guess what comes next.
type Symbol = u32;
/// The "length" of a literal begins here.
const LENGTHS: usize = 256;
/// In the place of a distance's code: there is none.
const NO_DISTANCE: usize = DISTANCES;

fn literal(byte: u8) -> Symbol {
    Symbol::from(byte) | (NO_DISTANCE as Symbol) << 10
}

/// How many bytes of the input it stands for.
fn length(symbol: Symbol) -> usize {
    let low = symbol as usize & 0x3ff;
    if low < LENGTHS { 1 } else { low - LENGTHS }
}

/// Code, extra bits and least length of each length from 3 to 258.
const LENGTH_CODES: [(u16, u8, u16); MAX_MATCH + 1] = length_codes();

const fn length_codes() -> [(u16, u8, u16); MAX_MATCH + 1] {
    let mut codes = [(0, 0, 0); MAX_MATCH + 1];
    let (mut code, mut length) = (257, MIN_MATCH);
    while length < MAX_MATCH {
        let extra = if code < 265 { 0 } else { (code - 261) / 4 };
        let mut i = 0;
        while i < 1 << extra && length + i < MAX_MATCH {
            codes[length + i] = (code, extra as u8, length as u16);
            i += 1;
        }
        length += i;
        code += 1;
    }
    codes[MAX_MATCH] = (285, 0, MAX_MATCH as u16);
    codes
}

/// Code and extra bits of a distance.
fn distance_code(distance: usize) -> (usize, u32) {
    let below = distance - 1;
    if below < 4 {
        return (below, 0);
    }
    let extra = below.ilog2() - 1;
    (2 * extra as usize + (below >> extra), extra)
}

/// How often each code occurs.
#[derive(Clone)]
struct Counts {
    literals: [u32; LITERALS],
    distances: [u32; DISTANCES],
}

impl Counts {
    const NONE: Self = Counts { literals: [0; LITERALS], distances: [0; DISTANCES] };

    fn all(&self) -> impl Iterator<Item = (&[u32], u32)> {
        [(&self.literals[..], self.literals.iter().sum()), (&self.distances[..], self.distances.iter().sum())]
            .into_iter()
    }

    fn add(&mut self, other: &Counts) {
        let pairs =
            self.literals.iter_mut().zip(&other.literals).chain(self.distances.iter_mut().zip(&other.distances));
        pairs.for_each(|(to, from)| *to += from);
    }

    /// About how many bits a block with these takes, but for extra bits.
    fn cost(&self) -> f32 {
        let mut bits = 0.0;
        for (counts, total) in self.all() {
            let whole = (total as f32).log2();
            for &count in counts.iter().filter(|&&count| count > 0) {
                // A code of a whole number of bits, and about four bits to tell its length.
                bits += count as f32 * (whole - (count as f32).log2()) + 4.0;
            }
        }
        bits + 60.0
    }
}

/// A code: for each symbol its bits, reversed as they are written, and how many they are.
#[derive(Clone)]
struct Code<const N: usize> {
    lengths: [u8; N],
    bits: [u16; N],
}

impl<const N: usize> Code<N> {
    /// The best code for these counts of which none is longer than `longest` bits.
    fn new(counts: &[u32; N], longest: usize) -> Self {
        let mut code = Code { lengths: lengths(counts, longest), bits: [0; N] };
        code.assign();
        code
    }

    /// Codes of a length follow each other in the order of their symbols, section 3.2.2.
    fn assign(&mut self) {
        let mut next = [0u16; LONGEST + 2];
        for &length in self.lengths.iter().filter(|&&length| length > 0) {
            next[usize::from(length) + 1] += 1;
        }
        for length in 1..next.len() {
            next[length] = (next[length - 1] + next[length]) << 1;
        }
        for (bits, &length) in self.bits.iter_mut().zip(&self.lengths) {
            if length > 0 {
                let value = &mut next[usize::from(length)];
                *bits = (*value).reverse_bits() >> (16 - length);
                *value += 1;
            }
        }
    }

    fn cost(&self, counts: &[u32; N]) -> usize {
        counts.iter().zip(&self.lengths).map(|(&count, &length)| count as usize * usize::from(length)).sum()
    }
}

/// Huffman's lengths, and none longer than `longest`. Symbols that do not occur have 0; if fewer than two occur, the first ones have 1.
fn lengths<const N: usize>(counts: &[u32; N], longest: usize) -> [u8; N] {
    let mut lengths = [0; N];
    // Counts above, symbols below.
    let mut order = [0u64; LITERALS];
    let mut used = 0;
    for (symbol, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        order[used] = u64::from(count) << 16 | symbol as u64;
        used += 1;
    }
    if used < 2 {
        // A complete code has two.
        let one = if used == 1 { (order[0] & 0xffff) as usize } else { 0 };
        (lengths[one], lengths[usize::from(one == 0)]) = (1, 1);
        return lengths;
    }
    let order = &mut order[..used];
    order.sort_unstable();
    // The two lightest become one, until one is left. Those that were made are as sorted as the leaves are.
    let mut weights = [0u64; LITERALS];
    let mut parents = [0u16; 2 * LITERALS];
    let (mut leaf, mut made) = (0, 0);
    for new in 0..used - 1 {
        let mut weight = 0;
        for _ in 0..2 {
            let light = order.get(leaf).map(|entry| entry >> 16);
            weight += match light {
                Some(light) if made == new || light <= weights[made] => {
                    parents[leaf] = new as u16;
                    leaf += 1;
                    light
                }
                _ => {
                    parents[used + made] = new as u16;
                    made += 1;
                    weights[made - 1]
                }
            };
        }
        weights[new] = weight;
    }
    // How many leaves there are at each depth; what is too deep is counted at the last one.
    let mut depths = [0u8; LITERALS];
    for inner in (0..used - 2).rev() {
        depths[inner] = depths[usize::from(parents[used + inner])] + 1;
    }
    let mut of_length = [0usize; LONGEST + 1];
    for leaf in 0..used {
        of_length[usize::from(depths[usize::from(parents[leaf])] + 1).min(longest)] += 1;
    }
    // Leaves that were lifted took more of the code than there is: others go down for them.
    let mut taken: usize = (1..=longest).map(|length| of_length[length] << (longest - length)).sum();
    while taken > 1 << longest {
        let length = (1..longest).rev().find(|&length| of_length[length] > 0).unwrap_or(1);
        of_length[length] -= 1;
        of_length[length + 1] += 1;
        taken -= 1 << (longest - length - 1);
    }
    // And what that freed is used.
    let mut free = (1 << longest) - taken;
    while free > 0 {
        let Some(length) = (2..=longest).find(|&l| of_length[l] > 0 && 1 << (longest - l) <= free) else { break };
        of_length[length] -= 1;
        of_length[length - 1] += 1;
        free -= 1 << (longest - length);
    }
    let mut rarest = order.iter();
    for length in (1..=longest).rev() {
        for entry in rarest.by_ref().take(of_length[length]) {
            lengths[(entry & 0xffff) as usize] = length as u8;
        }
    }
    lengths
}

/// Bits, the first in the lowest.
struct Bits<'a> {
    out: &'a mut [u8],
    at: usize,
    word: u64,
    count: u32,
}

impl Bits<'_> {
    /// At most 48 bits.
    #[inline]
    fn put(&mut self, bits: u64, count: u32) {
        if self.count + count > 63 {
            self.write();
        }
        self.word |= bits << self.count;
        self.count += count;
    }

    #[inline]
    fn write(&mut self) {
        self.out[self.at..self.at + SLACK].copy_from_slice(&self.word.to_le_bytes());
        let bytes = self.count / 8;
        self.at += bytes as usize;
        self.word >>= 8 * bytes;
        self.count -= 8 * bytes;
    }

    /// The rest of the byte is zero.
    fn align(&mut self) {
        self.write();
        self.count = self.count.next_multiple_of(8);
        self.write();
    }

    fn len_in_bits(&self) -> usize {
        8 * self.at + self.count as usize
    }
}

/// What is kept from one input to the next: memory.
pub(crate) struct Deflate {
    /// Where three and four bytes with a hash were seen last: places modulo 1 << 16, and [`WINDOW`] and 1 added. What they say is looked at, never believed.
    last3: Box<[u16; 1 << BITS3]>,
    last4: Box<[u16; 1 << BITS4]>,
    /// For each place: how far behind it three bytes with the same hash are, and, above 16 bits, how far four.
    near: Box<[u32; RING]>,
    symbols: Vec<Symbol>,
    parts: Vec<Counts>,
}

fn word4(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(data[at..at + 4].try_into().expect("four bytes"))
}

fn word8(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(data[at..at + 8].try_into().expect("eight bytes"))
}

fn hash(word: u32, bits: u32) -> usize {
    (word.wrapping_mul(0x9e37_79b1) >> (32 - bits)) as usize
}

/// Are there so many different bytes that three of them cost more than a match?
fn has_many(data: &[u8]) -> bool {
    let mut seen = [false; 256];
    data.iter().for_each(|byte| seen[usize::from(*byte)] = true);
    seen.iter().filter(|seen| **seen).count() > MANY
}

/// How far what is at two places is the same, up to `most`.
fn common(data: &[u8], a: usize, b: usize, most: usize) -> usize {
    let mut length = 0;
    while length < most {
        let differ = word8(data, a + length) ^ word8(data, b + length);
        if differ != 0 {
            return (length + differ.trailing_zeros() as usize / 8).min(most);
        }
        length += 8;
    }
    most
}

/// A match: its length, 0 for none, and how far behind it lies.
#[derive(Clone, Copy)]
struct Match {
    length: usize,
    distance: usize,
}

impl Deflate {
    pub(crate) fn new() -> Self {
        Deflate {
            last3: Box::new([0; 1 << BITS3]),
            last4: Box::new([0; 1 << BITS4]),
            near: Box::new([0; RING]),
            symbols: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// `data` but for its last [`SLACK`] bytes, compressed into `out` but for its last [`SLACK`] bytes: the length, or `None` when there is no room.
    pub(crate) fn compress(&mut self, data: &[u8], out: &mut [u8]) -> Option<usize> {
        let (end, room) = (data.len().checked_sub(SLACK)?, out.len().checked_sub(SLACK)?);
        self.parse(data, end);
        let mut bits = Bits { out, at: 0, word: 0, count: 0 };
        let (mut symbol, mut byte, mut part) = (0, 0, 0);
        while part < self.parts.len() {
            let mut counts = self.parts[part].clone();
            let mut cost = counts.cost();
            part += 1;
            let first = symbol;
            symbol += PART;
            while let Some(next) = self.parts.get(part) {
                let mut both = counts.clone();
                both.add(next);
                let together = both.cost();
                if together > cost + next.cost() {
                    break;
                }
                (counts, cost) = (both, together);
                part += 1;
                symbol += PART;
            }
            symbol = symbol.min(self.symbols.len());
            let symbols = &self.symbols[first..symbol];
            let last = part == self.parts.len();
            let len: usize = symbols.iter().map(|s| length(*s)).sum();
            put_block(&mut bits, symbols, &mut counts, &data[byte..byte + len], last, room)?;
            byte += len;
        }
        bits.align();
        (bits.at <= room).then_some(bits.at)
    }

    /// Literals and matches, and how often there are which.
    fn parse(&mut self, data: &[u8], end: usize) {
        self.symbols.clear();
        self.parts.clear();
        // What an earlier input left would be harmless, but the output should not depend on it.
        self.last3.fill(0);
        self.last4.fill(0);
        let mut counts = Counts::NONE;
        let (mut at, mut known) = (0, 0);
        let short = has_many(&data[..end.min(WINDOW)]);
        let mut here = None;
        while at < end {
            if at + 1 >= known {
                let to = end.min(known + AHEAD);
                self.look(data, known, to, short);
                known = to;
            }
            let best = match here.take() {
                Some(found) => found,
                None => self.find(data, at, end, Match { length: MIN_MATCH - 1, distance: 0 }, DEPTH),
            };
            if self.symbols.len().is_multiple_of(PART) && !self.symbols.is_empty() {
                self.parts.push(std::mem::replace(&mut counts, Counts::NONE));
            }
            if best.length < MIN_MATCH {
                counts.literals[usize::from(data[at])] += 1;
                self.symbols.push(literal(data[at]));
                at += 1;
                continue;
            }
            // If the next byte begins a better one, this is a literal.
            if best.length < NICE && at + 1 < end {
                let next = self.find(
                    data,
                    at + 1,
                    end,
                    Match { length: best.length, distance: 0 },
                    if best.length < GOOD { DEPTH / 2 } else { DEPTH / 4 },
                );
                if next.distance > 0 && is_better(next, best) {
                    counts.literals[usize::from(data[at])] += 1;
                    self.symbols.push(literal(data[at]));
                    at += 1;
                    here = Some(next);
                    continue;
                }
            }
            counts.literals[usize::from(LENGTH_CODES[best.length].0)] += 1;
            let (code, extra) = distance_code(best.distance);
            counts.distances[code] += 1;
            let extra = (best.distance - 1) & ((1 << extra) - 1);
            self.symbols.push(((LENGTHS + best.length) | code << 10 | extra << 15) as Symbol);
            at += best.length;
        }
        self.parts.push(counts);
    }

    /// Where [`Self::find`] looks for matches of these places. There is no branch in it that depends on the data: it would be guessed wrong.
    fn look(&mut self, data: &[u8], from: usize, to: usize, short: bool) {
        for at in from..to {
            let word = word4(data, at);
            // What was never seen, 0, is farther away than anything that is looked at.
            let place = (at + WINDOW + 1) as u16;
            let distance = |last: &mut u16| u32::from(place.wrapping_sub(std::mem::replace(last, place)));
            let three = if short { distance(&mut self.last3[hash(word << 8, BITS3)]) } else { FAR };
            let four = distance(&mut self.last4[hash(word, BITS4)]);
            self.near[at % RING] = three | four << 16;
        }
    }

    /// The longest match that is longer than `best`, or that.
    fn find(&self, data: &[u8], at: usize, end: usize, mut best: Match, depth: usize) -> Match {
        let near = self.near[at % RING];
        let most = (end - at).min(MAX_MATCH);
        if best.length >= most {
            return best;
        }
        let word = word4(data, at);
        let mut step = (near >> 16) as usize;
        let mut distance = 0;
        for _ in 0..depth {
            distance += step;
            if step == 0 || distance > WINDOW {
                break;
            }
            let from = at - distance;
            // A longer one is the same at the end of that length, too.
            let tail = best.length.max(3) - 3;
            if word4(data, from + tail) == word4(data, at + tail) && word4(data, from) == word {
                let length = common(data, from, at, most);
                if length > best.length {
                    best = Match { length, distance };
                    if length >= NICE.min(most) {
                        break;
                    }
                }
            }
            step = (self.near[from % RING] >> 16) as usize;
        }
        let three = (near & 0xffff) as usize;
        if best.length < MIN_MATCH && three > 0 && three <= WINDOW && (word4(data, at - three) ^ word) << 8 == 0 {
            best = Match { length: MIN_MATCH, distance: three };
        }
        best
    }
}

/// Is a match one byte further on worth the literal before it?
fn is_better(next: Match, this: Match) -> bool {
    4 * (next.length as i32 - this.length as i32) + this.distance.ilog2() as i32 - next.distance.ilog2() as i32 > 2
}

/// The lengths of both codes as they stand in a block: (symbol, its extra bits, how many these are).
fn run_lengths(lengths: &[u8], runs: &mut Vec<(u8, u8, u8)>) {
    let mut at = 0;
    while at < lengths.len() {
        let length = lengths[at];
        let mut run = lengths[at..].iter().take_while(|l| **l == length).count();
        at += run;
        if length == 0 {
            while run >= 11 {
                let taken = run.min(138);
                runs.push((18, (taken - 11) as u8, 7));
                run -= taken;
            }
            if run >= 3 {
                runs.push((17, (run - 3) as u8, 3));
                run = 0;
            }
        } else {
            runs.push((length, 0, 0));
            run -= 1;
            while run >= 3 {
                let taken = run.min(6);
                runs.push((16, (taken - 3) as u8, 2));
                run -= taken;
            }
        }
        runs.extend(std::iter::repeat_n((length, 0, 0), run));
    }
}

/// The fixed codes of section 3.2.6.
fn fixed() -> (Code<LITERALS>, Code<DISTANCES>) {
    let mut lengths = [8; LITERALS];
    lengths[144..256].fill(9);
    lengths[256..280].fill(7);
    let mut literals = Code { lengths, bits: [0; LITERALS] };
    literals.assign();
    // The distances that are not there would stand behind the others.
    let mut distances = Code { lengths: [5; DISTANCES], bits: [0; DISTANCES] };
    distances.assign();
    (literals, distances)
}

/// A block, in the shortest of the three ways. `None` when there is no room for it.
fn put_block(
    bits: &mut Bits<'_>,
    symbols: &[Symbol],
    counts: &mut Counts,
    plain: &[u8],
    last: bool,
    room: usize,
) -> Option<()> {
    counts.literals[END] = 1;
    let mut literals = Code::new(&counts.literals, LONGEST);
    let mut distances = Code::new(&counts.distances, LONGEST);
    let told =
        |lengths: &[u8], least: usize| lengths.iter().rposition(|l| *l > 0).map_or(least, |at| (at + 1).max(least));
    let (told_literals, told_distances) = (told(&literals.lengths, 257), told(&distances.lengths, 1));
    let mut all = [0; LITERALS + DISTANCES];
    all[..told_literals].copy_from_slice(&literals.lengths[..told_literals]);
    all[told_literals..][..told_distances].copy_from_slice(&distances.lengths[..told_distances]);
    let mut runs = Vec::with_capacity(all.len());
    run_lengths(&all[..told_literals + told_distances], &mut runs);
    let mut pre_counts = [0; PRECODES];
    runs.iter().for_each(|run| pre_counts[usize::from(run.0)] += 1);
    let precode = Code::new(&pre_counts, PRE_LONGEST);
    let told_pre = PRE_ORDER.iter().rposition(|s| precode.lengths[*s] > 0).map_or(4, |at| (at + 1).max(4));

    let extra_of = |(code, count): (usize, &u32)| *count as usize * if code < 4 { 0 } else { code / 2 - 1 };
    let length_extra =
        |(at, count): (usize, &u32)| *count as usize * if (8..28).contains(&at) { at / 4 - 1 } else { 0 };
    let extra = counts.distances.iter().enumerate().map(extra_of).sum::<usize>()
        + counts.literals[END + 1..].iter().enumerate().map(length_extra).sum::<usize>();
    let header =
        14 + 3 * told_pre + precode.cost(&pre_counts) + runs.iter().map(|run| usize::from(run.2)).sum::<usize>();
    let own = header + literals.cost(&counts.literals) + distances.cost(&counts.distances);
    let (fixed_literals, fixed_distances) = fixed();
    let fixed = fixed_literals.cost(&counts.literals) + fixed_distances.cost(&counts.distances);
    // Each stored block begins with the rest of a byte, and the length twice.
    let begun = bits.len_in_bits() + 3;
    let stored = begun.next_multiple_of(8) - begun + 8 * plain.len() + 40 * plain.len().div_ceil(0xffff).max(1) - 8;
    if (begun + stored.min(extra + own.min(fixed))).div_ceil(8) > room {
        return None;
    }
    if stored < extra + own.min(fixed) {
        put_stored(bits, plain, last);
        return Some(());
    }
    if fixed <= own {
        bits.put(u64::from(last) | 1 << 1, 3);
        (literals, distances) = (fixed_literals, fixed_distances);
    } else {
        bits.put(u64::from(last) | 2 << 1, 3);
        bits.put((told_literals - 257) as u64 | ((told_distances - 1) as u64) << 5 | ((told_pre - 4) as u64) << 10, 14);
        PRE_ORDER[..told_pre].iter().for_each(|s| bits.put(u64::from(precode.lengths[*s]), 3));
        for (symbol, value, extra) in runs {
            let (code, length) = (precode.bits[usize::from(symbol)], precode.lengths[usize::from(symbol)]);
            bits.put(u64::from(code) | u64::from(value) << length, u32::from(length) + u32::from(extra));
        }
    }
    let words = Words::new(&literals, &distances);
    for &symbol in symbols {
        let (word, count) = words.of(symbol);
        bits.put(word, count);
    }
    bits.put(u64::from(literals.bits[END]), u32::from(literals.lengths[END]));
    Some(())
}

/// What is written for symbols.
struct Words {
    /// The bits for a byte or a length, and how many these are above 26 bits.
    literals: [u32; 1024],
    /// The same for a distance; how many extra bits it has is told above 21 bits.
    distances: [u32; 32],
}

impl Words {
    fn new(literals: &Code<LITERALS>, distances: &Code<DISTANCES>) -> Self {
        let mut words = Words { literals: [0; 1024], distances: [0; 32] };
        for (word, (bits, length)) in
            words.literals.iter_mut().zip(literals.bits.iter().zip(&literals.lengths)).take(END)
        {
            *word = u32::from(*bits) | u32::from(*length) << 26;
        }
        for (length, &(code, extra, base)) in LENGTH_CODES.iter().enumerate().skip(MIN_MATCH) {
            let (bits, count) =
                (u32::from(literals.bits[usize::from(code)]), u32::from(literals.lengths[usize::from(code)]));
            words.literals[LENGTHS + length] =
                bits | (length as u32 - u32::from(base)) << count | (count + u32::from(extra)) << 26;
        }
        for (code, word) in words.distances.iter_mut().enumerate().take(DISTANCES) {
            let extra = if code < 4 { 0 } else { code as u32 / 2 - 1 };
            *word = u32::from(distances.bits[code]) | extra << 21 | u32::from(distances.lengths[code]) << 26;
        }
        words
    }

    /// Bits, and how many.
    #[inline]
    fn of(&self, symbol: Symbol) -> (u64, u32) {
        let first = self.literals[symbol as usize & 0x3ff];
        let second = self.distances[symbol as usize >> 10 & 31];
        let mut count = first >> 26;
        let mut word = u64::from(first & ((1 << 26) - 1));
        word |= u64::from(second & 0xffff) << count;
        count += second >> 26;
        word |= u64::from(symbol >> 15) << count;
        (word, count + (second >> 21 & 31))
    }
}

/// Bytes as they are.
fn put_stored(bits: &mut Bits<'_>, plain: &[u8], last: bool) {
    let count = plain.len().div_ceil(0xffff);
    for (at, piece) in plain.chunks(0xffff).enumerate() {
        bits.put(u64::from(last && at + 1 == count), 3);
        bits.align();
        bits.put(piece.len() as u64 | (!piece.len() as u64 & 0xffff) << 16, 32);
        bits.write();
        bits.out[bits.at..bits.at + piece.len()].copy_from_slice(piece);
        bits.at += piece.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block_testkit::Rng;
    use flate2::{Decompress, FlushDecompress};

    fn packed(data: &[u8], room: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; room + SLACK];
        let len = Deflate::new().compress(&[data, &[0; SLACK]].concat(), &mut out)?;
        out.truncate(len);
        Some(out)
    }

    /// In small steps, so that the decoder has no more than its window to look back to.
    fn unpacked(bytes: &[u8], len: usize) -> Vec<u8> {
        let (mut stream, mut out) = (Decompress::new_with_window_bits(false, 12), vec![0; len + 1]);
        let mut to = 0;
        loop {
            let (from, end) = (stream.total_in() as usize, (to + 777).min(out.len()));
            let status = stream.decompress(&bytes[from..], &mut out[to..end], FlushDecompress::None).expect("deflate");
            to = stream.total_out() as usize;
            if status == flate2::Status::StreamEnd {
                assert_eq!(stream.total_in() as usize, bytes.len(), "nothing is behind the end");
                out.truncate(to);
                return out;
            }
        }
    }

    fn comes_back(data: &[u8]) -> usize {
        let bytes = packed(data, data.len() + data.len() / 1000 + 64).expect("there is room");
        assert!(unpacked(&bytes, data.len()) == data, "{} bytes", data.len());
        let mut out = vec![0; data.len()];
        let len = libdeflater::Decompressor::new().deflate_decompress(&bytes, &mut out).expect("deflate");
        assert!(len == data.len() && out == data);
        bytes.len()
    }

    /// Small numbers more often than large ones, of fewer bits than that.
    fn up_to(rng: &mut Rng, bits: u64) -> u64 {
        let bits = rng.below(1..bits);
        rng.below(0..1 << bits)
    }

    /// Data of which each piece repeats what was before, or is one of few bytes, or is noise.
    fn mixed(rng: &mut Rng, len: usize) -> Vec<u8> {
        let mut data: Vec<u8> = Vec::new();
        while data.len() < len {
            let piece = 1 << rng.below(0..13);
            match rng.below(0..4) {
                0 if !data.is_empty() => {
                    let from = data.len() - rng.below(1..(data.len() as u64).min(6000) + 1) as usize;
                    (0..piece).for_each(|i| data.push(data[from + i]));
                }
                1 => data.extend((0..piece).map(|_| rng.below(0..256) as u8)),
                2 => data.extend((0..piece).map(|_| up_to(rng, 9) as u8)),
                _ => data.extend(std::iter::repeat_n(rng.below(0..256) as u8, piece)),
            }
        }
        data.truncate(len);
        data
    }

    #[test]
    fn whatever_is_packed_comes_back() {
        for data in [&b""[..], b"a", b"ab", b"aaaa", b"abcabcabc", &[0; 70_000], &(0..=255).collect::<Vec<u8>>()] {
            comes_back(data);
        }
        let mut rng = Rng::new(77);
        for _ in 0..300 {
            let len = up_to(&mut rng, 18) as usize;
            comes_back(&mixed(&mut rng, len));
        }
        comes_back(&mixed(&mut rng, 2 << 20));
    }

    #[test]
    fn counts_of_all_kinds_make_a_complete_code() {
        let mut rng = Rng::new(5);
        for round in 0..2000 {
            let mut counts = [0u32; LITERALS];
            let used = rng.below(0..LITERALS as u64 + 1) as usize;
            // Fibonacci's numbers make the deepest codes that there are.
            let (mut a, mut b) = (1, 1);
            for count in counts.iter_mut().take(used) {
                (a, b) = (b, (a + b) % 1_000_003);
                *count = if round % 2 == 0 { a } else { up_to(&mut rng, 20) as u32 };
            }
            for longest in [LONGEST, 10] {
                let code = Code::new(&counts, longest);
                let taken: usize =
                    code.lengths.iter().filter(|l| **l > 0).map(|l| 1 << (longest - usize::from(*l))).sum();
                assert_eq!(taken, 1 << longest, "{counts:?}");
                assert!(counts.iter().zip(&code.lengths).all(|(count, length)| *count == 0 || *length > 0));
            }
        }
    }

    #[test]
    fn room_that_is_too_small_is_told() {
        let mut rng = Rng::new(9);
        for _ in 0..50 {
            let data = mixed(&mut rng, 20_000);
            let len = packed(&data, 21_000).expect("there is room").len();
            assert_eq!(packed(&data, len).map(|bytes| bytes.len()), Some(len));
            assert!(packed(&data, len - 1).is_none());
        }
    }

    #[test]
    fn what_was_packed_before_does_not_matter() {
        let (mut rng, mut deflate) = (Rng::new(3), Deflate::new());
        for _ in 0..50 {
            let len = rng.below(0..40_000) as usize;
            let data = [&mixed(&mut rng, len)[..], &[0; SLACK]].concat();
            let mut out = vec![0; len + 1000];
            let len = deflate.compress(&data, &mut out).expect("there is room");
            assert_eq!(packed(&data[..data.len() - SLACK], len).as_deref(), Some(&out[..len]));
        }
    }
}
