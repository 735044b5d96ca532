//! Which price a request meets. A path can be spelled in many ways and the handlers behind us may understand more of them than
//! we do, so that every reading of a path is asked, and one that is priced is enough.

use axum::http::Method;

/// A priced path: literal segments, `{name}` for one segment, `{*name}` or `*` at the end for any number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    method: Option<Method>,
    segments: Vec<Segment>,
}

/// In the order in which they win over each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    Literal(String),
    One,
    Rest,
}

/// What a request has to pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meets {
    /// Nothing.
    Nothing,
    /// The price with this index.
    Price(usize),
    /// Different prices, depending on who reads the path.
    Several,
}

impl Pattern {
    /// Reads `GET /report` or `/report`.
    pub(crate) fn parse(spec: &str) -> Option<Self> {
        let spec = spec.trim();
        let (method, path) = match spec.split_once(char::is_whitespace) {
            Some((method, path)) => (Some(method.to_ascii_uppercase()), path.trim()),
            None => (None, spec),
        };
        let method = match method.as_deref() {
            // A handler for GET answers HEAD as well.
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

    fn takes(&self, method: &Method) -> bool {
        let asked = if method == Method::HEAD {
            &Method::GET
        } else {
            method
        };
        self.method.as_ref().is_none_or(|own| own == asked)
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

    /// Smaller wins: literals over placeholders, a named method over any.
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

/// Finds the price of `method path` among `patterns`.
pub(crate) fn find<'a>(
    patterns: &(impl Iterator<Item = &'a Pattern> + Clone),
    method: &Method,
    path: &str,
) -> Meets {
    let mut met = Meets::Nothing;
    let decoded = decoded(path);
    for spelling in [path, decoded.as_str()] {
        let kept: Vec<&str> = split(spelling).collect();
        let resolved = without_dots(&kept);
        for reading in [kept, resolved] {
            let best = patterns
                .clone()
                .enumerate()
                .filter(|(_, pattern)| pattern.takes(method) && pattern.matches(&reading))
                .min_by_key(|(_, pattern)| pattern.precedence());
            met = match (met, best) {
                (met, None) => met,
                (Meets::Nothing, Some((index, _))) => Meets::Price(index),
                (Meets::Price(known), Some((index, _))) if known == index => met,
                (Meets::Price(_) | Meets::Several, Some(_)) => Meets::Several,
            };
        }
    }
    met
}

/// The segments, without the empty ones of double and trailing slashes.
fn split(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

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

/// Undoes percent encoding once; what is no encoding stays.
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

    fn met(specs: &[&str], method: &Method, path: &str) -> Meets {
        let patterns: Vec<Pattern> = specs
            .iter()
            .map(|spec| Pattern::parse(spec).unwrap())
            .collect();
        find(&patterns.iter(), method, path)
    }

    #[test]
    fn no_spelling_of_a_priced_path_is_free() {
        let specs = ["GET /report/today", "/files/{name}", "/tree/{*rest}"];
        for path in [
            "/report/today",
            "/report/today/",
            "//report///today",
            "/report/%74oday",
            "/%72eport%2Ftoday",
            "/./report/x/../today",
            "/report/%2e/today",
        ] {
            assert_eq!(met(&specs, &Method::GET, path), Meets::Price(0), "{path}");
            assert_eq!(met(&specs, &Method::HEAD, path), Meets::Price(0), "{path}");
            assert_eq!(
                met(&specs, &Method::POST, path),
                Meets::Nothing,
                "{path}: only GET is priced"
            );
        }
        for path in ["/files/a", "/files/a%2Fb", "/files/..", "/files/%2e%2e"] {
            assert_eq!(met(&specs, &Method::PUT, path), Meets::Price(1), "{path}");
        }
        for path in ["/tree", "/tree/a/b", "/tree/../public"] {
            assert_eq!(
                met(&specs, &Method::DELETE, path),
                Meets::Price(2),
                "{path}"
            );
        }
        for path in ["/", "/report", "/report/today/x", "/Report/today"] {
            assert_eq!(met(&specs, &Method::GET, path), Meets::Nothing, "{path}");
        }
    }

    #[test]
    fn the_most_specific_price_counts_and_two_readings_with_two_prices_are_told() {
        let specs = ["/a/{x}", "/a/b", "GET /a/b", "/dear"];
        assert_eq!(met(&specs, &Method::GET, "/a/b"), Meets::Price(2));
        assert_eq!(met(&specs, &Method::POST, "/a/b"), Meets::Price(1));
        assert_eq!(met(&specs, &Method::GET, "/a/c"), Meets::Price(0));
        assert_eq!(
            met(&specs, &Method::GET, "/a/%2e%2e%2fdear"),
            Meets::Several
        );
    }

    #[test]
    fn what_is_no_route_is_not_read_as_one() {
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
