//! Matches requests to priced routes. A path has many spellings (percent encoding, dots, double slashes), and a server behind the paywall
//! may normalise more of them than axum does. So every reading of a path is matched, and a request is priced if any reading is. A spelling
//! that nobody needs, and that some servers read as another path, is refused below priced paths.

use axum::http::Method;

/// A priced path: literal segments, `{name}` for one segment, `{*name}` or `*` at the end for any number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    method: Option<Method>,
    segments: Vec<Segment>,
}

/// In order of precedence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    Literal(String),
    One,
    Rest,
}

/// The price of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PriceMatch {
    /// No reading of the path is priced.
    Unpriced,
    /// The route with this index.
    Route(usize),
    /// Different readings of the path match different routes, or a lenient server could read it as a path below a priced one.
    Ambiguous,
}

impl Pattern {
    /// Parses `GET /report` or `/report`.
    pub(crate) fn parse(spec: &str) -> Option<Self> {
        let spec = spec.trim();
        let (method, path) = match spec.split_once(char::is_whitespace) {
            Some((method, path)) => (Some(method.to_ascii_uppercase()), path.trim()),
            None => (None, spec),
        };
        let method = match method.as_deref() {
            // axum answers HEAD with the handler of GET.
            Some("HEAD") => Some(Method::GET),
            Some(name) => Some(Method::from_bytes(name.as_bytes()).ok()?),
            None => None,
        };
        if !path.starts_with('/') || path.contains(['?', '#']) || path.contains(char::is_whitespace)
        {
            return None;
        }
        let mut segments: Vec<Segment> = Vec::new();
        for text in split(path) {
            if segments.last() == Some(&Segment::Rest) {
                return None;
            }
            segments.push(Segment::parse(text)?);
        }
        Some(Self { method, segments })
    }

    fn accepts(&self, method: &Method) -> bool {
        let method = if method == Method::HEAD {
            &Method::GET
        } else {
            method
        };
        self.method.as_ref().is_none_or(|own| own == method)
    }

    fn matches(&self, path: &[&str]) -> bool {
        let mut rest = path.iter();
        for segment in &self.segments {
            match segment {
                Segment::Rest => return true,
                Segment::One => {
                    if rest.next().is_none() {
                        return false;
                    }
                }
                Segment::Literal(text) => {
                    if rest.next() != Some(&text.as_str()) {
                        return false;
                    }
                }
            }
        }
        rest.next().is_none()
    }

    /// Whether a reading stands at or below the literal segments with which the pattern begins.
    fn is_above(&self, path: &[&str]) -> bool {
        let mut rest = path.iter();
        self.segments
            .iter()
            .map_while(|segment| match segment {
                Segment::Literal(text) => Some(text.as_str()),
                Segment::One | Segment::Rest => None,
            })
            .all(|literal| rest.next() == Some(&literal))
    }

    /// The smallest value wins: literals before placeholders, a named method before any.
    fn precedence(&self) -> (Vec<u8>, bool) {
        let ranks = self.segments.iter().map(|segment| match segment {
            Segment::Literal(_) => 0,
            Segment::One => 1,
            Segment::Rest => 2,
        });
        (ranks.collect(), self.method.is_none())
    }
}

impl Segment {
    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Rest);
        }
        match text
            .strip_prefix('{')
            .and_then(|text| text.strip_suffix('}'))
        {
            Some(name) if name.starts_with('*') => Some(Self::Rest),
            Some(_) => Some(Self::One),
            None if text.contains(['{', '}', '*']) => None,
            None => Some(Self::Literal(decoded(text))),
        }
    }
}

/// Finds the pattern that prices `method path`, among all readings of the path.
pub(crate) fn find<'a>(
    patterns: &(impl Iterator<Item = &'a Pattern> + Clone),
    method: &Method,
    path: &str,
) -> PriceMatch {
    let mut accepting = patterns.clone().filter(|pattern| pattern.accepts(method));
    if has_lenient_readings(path) {
        let readings = lenient_readings(path);
        let is_priced = accepting.any(|pattern| {
            let mut readings = readings.iter();
            readings.any(|reading| {
                let segments: Vec<&str> = split(reading).collect();
                pattern.is_above(&segments) || pattern.is_above(&without_dots(&segments))
            })
        });
        return if is_priced {
            PriceMatch::Ambiguous
        } else {
            PriceMatch::Unpriced
        };
    }
    let mut result = PriceMatch::Unpriced;
    let decoded = decoded(path);
    for spelling in [path, decoded.as_str()] {
        let literal: Vec<&str> = split(spelling).collect();
        let resolved = without_dots(&literal);
        for reading in [literal, resolved] {
            let best = patterns
                .clone()
                .enumerate()
                .filter(|(_, pattern)| pattern.accepts(method) && pattern.matches(&reading))
                .min_by_key(|(_, pattern)| pattern.precedence());
            result = match (result, best) {
                (result, None) => result,
                (PriceMatch::Unpriced, Some((index, _))) => PriceMatch::Route(index),
                (PriceMatch::Route(found), Some((index, _))) if found == index => result,
                (PriceMatch::Route(_) | PriceMatch::Ambiguous, Some(_)) => PriceMatch::Ambiguous,
            };
        }
    }
    result
}

/// How often a lenient server may decode a path, one behind the other.
const DECODINGS_MAX: usize = 4;

/// Whether servers differ about the meaning of a path: encoded slashes, double encoding, dot segments, path parameters (`;`), backslashes or
/// control characters.
fn has_lenient_readings(path: &str) -> bool {
    let once = decoded(path);
    let slashes = |text: &str| text.matches('/').count();
    slashes(&once) != slashes(path)
        || decoded(&once) != once
        || split(&once).any(|segment| matches!(segment, "." | ".."))
        || once.contains([';', '\\'])
        || once.contains(char::is_control)
}

/// The paths that lenient servers could read: decoded up to [`DECODINGS_MAX`] times, with backslashes as slashes, without path parameters
/// and what follows a control character.
fn lenient_readings(path: &str) -> Vec<String> {
    let mut readings = Vec::new();
    let mut spelling = path.to_owned();
    for _ in 0..=DECODINGS_MAX {
        let slashed = spelling.replace('\\', "/");
        let segments = slashed.split('/').map(|segment| {
            let end = segment.find(|letter: char| letter == ';' || letter.is_control());
            end.and_then(|end| segment.get(..end)).unwrap_or(segment)
        });
        readings.push(segments.collect::<Vec<_>>().join("/"));
        readings.push(slashed);
        spelling = decoded(&spelling);
    }
    readings
}

/// The segments of a path, without the empty ones of double and trailing slashes.
fn split(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

/// Resolves `.` and `..` segments.
fn without_dots<'a>(segments: &[&'a str]) -> Vec<&'a str> {
    let mut resolved = Vec::with_capacity(segments.len());
    for segment in segments {
        match *segment {
            "." => {}
            ".." => {
                resolved.pop();
            }
            other => resolved.push(other),
        }
    }
    resolved
}

/// Percent-decodes once. Invalid escapes stay as they are.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escape = after
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|digits| {
                let [high, low] = digits else { return None };
                Some(hex(*high)? << 4 | hex(*low)?)
            });
        if let Some(byte) = escape {
            bytes.push(byte);
            rest = after.get(2..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

const fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(specs: &[&str], method: &Method, path: &str) -> PriceMatch {
        let patterns: Vec<Pattern> = specs
            .iter()
            .map(|spec| Pattern::parse(spec).unwrap())
            .collect();
        find(&patterns.iter(), method, path)
    }

    #[test]
    fn every_spelling_of_a_priced_path_is_priced() {
        let specs = ["GET /report/today", "/files/{name}", "/tree/{*rest}"];
        for path in [
            "/report/today",
            "/report/today/",
            "//report///today",
            "/report/%74oday",
            "/%72eport/toda%79",
        ] {
            assert_eq!(
                matched(&specs, &Method::GET, path),
                PriceMatch::Route(0),
                "{path}"
            );
            assert_eq!(
                matched(&specs, &Method::HEAD, path),
                PriceMatch::Route(0),
                "{path}"
            );
            assert_eq!(
                matched(&specs, &Method::POST, path),
                PriceMatch::Unpriced,
                "{path}: only GET is priced"
            );
        }
        for path in ["/files/a", "/files/100%25", "/files/a%20b"] {
            assert_eq!(
                matched(&specs, &Method::PUT, path),
                PriceMatch::Route(1),
                "{path}"
            );
        }
        for path in ["/tree", "/tree/a/b"] {
            assert_eq!(
                matched(&specs, &Method::DELETE, path),
                PriceMatch::Route(2),
                "{path}"
            );
        }
        for path in ["/", "/report", "/report/today/x", "/Report/today"] {
            assert_eq!(
                matched(&specs, &Method::GET, path),
                PriceMatch::Unpriced,
                "{path}"
            );
        }
    }

    #[test]
    fn most_specific_route_wins_and_two_prices_are_ambiguous() {
        let specs = ["/a/{x}", "/a/b", "GET /a/b", "/dear"];
        assert_eq!(matched(&specs, &Method::GET, "/a/b"), PriceMatch::Route(2));
        assert_eq!(matched(&specs, &Method::POST, "/a/b"), PriceMatch::Route(1));
        assert_eq!(matched(&specs, &Method::GET, "/a/c"), PriceMatch::Route(0));
    }

    #[test]
    fn spelling_with_several_readings_is_refused_below_priced_paths() {
        let specs = ["GET /report/today", "/files/{name}", "/tree/{*rest}"];
        for path in [
            "/%72eport%2Ftoday",
            "/./report/x/../today",
            "/report/%2e/today",
            "/public/..%2freport/today",
            "/public/%252e%252e/report/today",
            "/public/%25252e%25252e/report/today",
            "/report;v=1/today",
            "/report/today;jsessionid=1",
            "/report/today%3Bx",
            "/report\\today",
            "/report%5Ctoday",
            "/public/..%5creport%5ctoday",
            "/report/today%00",
            "/report/today%00.css",
            "/report/today%0d%0a",
            "/report/today/%2e",
            "/report/%2574oday",
            "/files/a%2Fb",
            "/files/..",
            "/files/%2e%2e",
            "/files/%2541",
            "/tree/../public",
        ] {
            assert_eq!(
                matched(&specs, &Method::GET, path),
                PriceMatch::Ambiguous,
                "{path}"
            );
        }
        for path in ["/public/a%2Fb", "/public/a;b", "/../public", "/report%2F.."] {
            assert_eq!(
                matched(&specs, &Method::GET, path),
                PriceMatch::Unpriced,
                "{path}: no reading is priced"
            );
        }
        assert_eq!(
            matched(&specs, &Method::POST, "/report%2Ftoday"),
            PriceMatch::Unpriced,
            "only GET is priced"
        );
        assert_eq!(
            matched(&["/{any}"], &Method::GET, "/a;b"),
            PriceMatch::Ambiguous
        );
    }

    #[test]
    fn invalid_route_specs_are_rejected() {
        for spec in [
            "",
            "report",
            "GET report",
            "GET /a b",
            "/a?b",
            "/{*x}/a",
            "/a{b}",
            "G@T /a",
        ] {
            assert_eq!(Pattern::parse(spec), None, "{spec:?}");
        }
    }
}
