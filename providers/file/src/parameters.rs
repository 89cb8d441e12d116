//! The `parameters` of a class, turned into objects. Pure: what a path leads to is `tree.rs`'s to see.

use std::collections::BTreeMap;

use coffer_provider::{ObjectRef, Parameters, ProviderError, Yaml, clean_text};

/// The request of the object that is the whole folder of a Namespace: no path of a class reads like it.
pub(crate) const WHOLE_FOLDER: &str = ".";

const FIELD: &str = "parameters.objects";
const MAX_COMPONENT: usize = 255;
const MAX_PATH: usize = 4096;
const MAX_DEPTH: usize = 32;

/// What a class reads: what it lists, at most `limit` of it, or else all that its Namespace has.
pub(crate) fn objects(
    parameters: &Parameters,
    limit: usize,
) -> Result<Vec<ObjectRef>, ProviderError> {
    let Some(text) = parameters.get("objects") else {
        return Ok(vec![ObjectRef {
            name: String::new(),
            request: WHOLE_FOLDER.to_owned(),
        }]);
    };
    let list = match Yaml::parse(FIELD, text)? {
        Yaml::List(list) if !list.is_empty() => list,
        _ => {
            return Err(ProviderError::parameter(
                FIELD,
                "must be a list of paths with at least one entry; leave it out to read everything",
            ));
        }
    };
    if list.len() > limit {
        let problem = format!("has {} entries, and the limit is {limit}", list.len());
        return Err(ProviderError::parameter(FIELD, problem));
    }
    let entries: Vec<_> = list
        .into_iter()
        .enumerate()
        .map(|(index, node)| Entry::new(index, node))
        .collect::<Result<_, _>>()?;
    names_fit_beside_each_other(&entries)?;
    Ok(entries.into_iter().map(|entry| entry.object).collect())
}

struct Entry {
    object: ObjectRef,
    /// Where the class gives the name.
    field: String,
}

impl Entry {
    fn new(index: usize, node: Yaml) -> Result<Self, ProviderError> {
        let field = format!("{FIELD}[{index}]");
        let fields = match node {
            Yaml::Text(path) => {
                check_path(&field, &path)?;
                let (name, request) = (path.clone(), path);
                let object = ObjectRef { name, request };
                return Ok(Self { object, field });
            }
            Yaml::Map(fields) => fields,
            Yaml::List(_) | Yaml::Scalar(_) | Yaml::Null => {
                let problem = "must be a path in quotes, or a mapping with path and name";
                return Err(ProviderError::parameter(field, problem));
            }
        };
        let (mut path, mut name) = (None, None);
        for (key, node) in fields {
            let field = format!("{field}.{key}");
            let place = match key.as_str() {
                "path" => &mut path,
                "name" => &mut name,
                _ => {
                    let problem = "is not known: there are path and name";
                    return Err(ProviderError::parameter(field, problem));
                }
            };
            let Yaml::Text(text) = node else {
                return Err(ProviderError::parameter(field, "must be text in quotes"));
            };
            check_path(&field, &text)?;
            *place = Some(text);
        }
        let Some(request) = path else {
            return Err(ProviderError::parameter(field + ".path", "is missing"));
        };
        let (field, name) = match name {
            Some(name) => (field + ".name", name),
            None => (field + ".path", request.clone()),
        };
        let object = ObjectRef { name, request };
        Ok(Self { object, field })
    }
}

/// The path has to be one that a volume can hold too, since it is the default of the name.
fn check_path(field: &str, path: &str) -> Result<(), ProviderError> {
    let problem = if path.is_empty() {
        "must not be empty"
    } else if path.starts_with('/') {
        "must be relative to the folder of the Namespace"
    } else if clean_text(path, usize::MAX) != path {
        "must not contain control characters"
    } else if path.len() > MAX_PATH || path.split('/').any(|part| part.len() > MAX_COMPONENT) {
        "must not be longer than 255 bytes between two slashes, or 4096 in all"
    } else if path.split('/').count() > MAX_DEPTH {
        "must not be deeper than 32 levels"
    } else if path.split('/').any(|part| part.is_empty() || part == ".") {
        "must not have empty or `.` components"
    } else if path.split('/').any(|part| part.starts_with("..")) {
        "must not have components that start with `..`"
    } else {
        return Ok(());
    };
    Err(ProviderError::parameter(field, problem))
}

/// Two objects must not want the same place in a volume, nor one a file where another wants a folder.
fn names_fit_beside_each_other(entries: &[Entry]) -> Result<(), ProviderError> {
    let mut places = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        if let Some(first) = places.insert(entry.object.name.as_str(), index) {
            let problem = format!("has the name of objects[{first}]");
            return Err(ProviderError::parameter(&entry.field, problem));
        }
    }
    for entry in entries {
        let name = entry.object.name.as_str();
        for (slash, _) in name.match_indices('/') {
            if let Some(above) = places.get(&name[..slash]) {
                let problem = format!("lies below the name of objects[{above}]");
                return Err(ProviderError::parameter(&entry.field, problem));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<(String, String)>, String> {
        let parameters = Parameters::from([("objects".into(), text.into())]);
        let objects = objects(&parameters, 256).map_err(|error| error.to_string())?;
        Ok(objects.into_iter().map(|o| (o.name, o.request)).collect())
    }

    #[test]
    fn objects_are_paths_or_paths_with_names() {
        for (text, expected) in [
            ("[db.json]", &[("db.json", "db.json")][..]),
            ("- b\n- a/c\n", &[("b", "b"), ("a/c", "a/c")]),
            ("- path: tls\n  name: web-tls\n", &[("web-tls", "tls")]),
            ("- {path: tls}", &[("tls", "tls")]),
            ("- {name: '007', path: tls}", &[("007", "tls")]),
            (
                "[{path: a, name: x}, {path: a, name: y}]",
                &[("x", "a"), ("y", "a")],
            ),
            (
                "[a, a-b, {path: b, name: a.b}]",
                &[("a", "a"), ("a-b", "a-b"), ("a.b", "b")],
            ),
            (
                "['.hidden', 'ünï/a b']",
                &[(".hidden", ".hidden"), ("ünï/a b", "ünï/a b")],
            ),
        ] {
            let expected: Vec<_> = expected
                .iter()
                .map(|&(n, r)| (n.into(), r.into()))
                .collect();
            assert_eq!(of(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn without_objects_the_folder_of_the_namespace_is_the_object() {
        let unknown = Parameters::from([("region".into(), "ours is not to ask".into())]);
        let objects = objects(&unknown, 256).expect("unknown parameters are no error");
        assert_eq!(objects.len(), 1);
        assert_eq!(
            (objects[0].name.as_str(), objects[0].request.as_str()),
            ("", ".")
        );
    }

    #[test]
    fn an_error_names_the_field_and_what_it_has_to_be() {
        let long = format!("['{}']", "ü".repeat(128));
        let deep = format!("['{}b']", "a/".repeat(32));
        let bomb = format!("[&a [{}], {}]", "x,".repeat(1000), "*a,".repeat(1000));
        for (text, start) in [
            ("", "parameters.objects: must be a list"),
            ("[]", "parameters.objects: must be a list"),
            ("db.json", "parameters.objects: must be a list"),
            ("a: b", "parameters.objects: must be a list"),
            ("[a", "parameters.objects: "),
            (&bomb, "parameters.objects: "),
            ("[a, 5]", "parameters.objects[1]: must be a path in quotes"),
            ("[a, ~]", "parameters.objects[1]: must be a path in quotes"),
            (
                "[a, [b]]",
                "parameters.objects[1]: must be a path in quotes",
            ),
            ("[a, '']", "parameters.objects[1]: must not be empty"),
            ("[/etc/shadow]", "parameters.objects[0]: must be relative"),
            (
                "[a, b, {path: ../c}]",
                "parameters.objects[2].path: must not have components that",
            ),
            (
                "[a/../b]",
                "parameters.objects[0]: must not have components that",
            ),
            (
                "[..data/a]",
                "parameters.objects[0]: must not have components that",
            ),
            ("[a//b]", "parameters.objects[0]: must not have empty"),
            ("[a/]", "parameters.objects[0]: must not have empty"),
            ("[.]", "parameters.objects[0]: must not have empty"),
            ("[./a]", "parameters.objects[0]: must not have empty"),
            (
                r#"["a\0b"]"#,
                "parameters.objects[0]: must not contain control",
            ),
            (
                r#"["a\nb"]"#,
                "parameters.objects[0]: must not contain control",
            ),
            (
                r#"["a\u202eb"]"#,
                "parameters.objects[0]: must not contain control",
            ),
            (&long, "parameters.objects[0]: must not be longer"),
            (&deep, "parameters.objects[0]: must not be deeper"),
            ("[{name: a}]", "parameters.objects[0].path: is missing"),
            ("[{}]", "parameters.objects[0].path: is missing"),
            (
                "[{path: a, pth: b}]",
                "parameters.objects[0].pth: is not known",
            ),
            ("[{path: 5}]", "parameters.objects[0].path: must be text"),
            (
                "[{path: a, name: [b]}]",
                "parameters.objects[0].name: must be text",
            ),
            (
                "[{path: a, name: /b}]",
                "parameters.objects[0].name: must be relative",
            ),
            ("[{path: a, path: b}]", "parameters.objects: "),
            (
                "[a, b, a]",
                "parameters.objects[2]: has the name of objects[0]",
            ),
            (
                "[a, {path: b, name: a}]",
                "parameters.objects[1].name: has the name of objects[0]",
            ),
            (
                "[a, a-b, {path: a/b}]",
                "parameters.objects[2].path: lies below the name of objects[0]",
            ),
            (
                "[a/b/c, a]",
                "parameters.objects[0]: lies below the name of objects[1]",
            ),
        ] {
            let error = of(text).expect_err(text);
            assert!(error.starts_with(start), "{text}: {error}");
            assert!(
                !error.contains("\\u{a}"),
                "{text}: one line is enough: {error}"
            );
        }
    }

    #[test]
    fn a_list_is_bounded() {
        for (entries, fits) in [(255, true), (256, true), (257, false)] {
            let text: String = (0..entries).map(|i| format!("- f{i}\n")).collect();
            assert_eq!(of(&text).is_ok(), fits, "{entries}");
        }
    }
}
