//! Every rule of an entry, alone.

use super::*;

use crate::parameters::Class;
use coffer_provider::Parameters;

const SECRET_ARN: &str = "arn:aws:secretsmanager:us-west-2:123456789012:secret:db-AbCdEf";
const STANDBY_ARN: &str = "arn:aws:secretsmanager:us-east-2:123456789012:secret:db-GhIjKl";
const PARAMETER_ARN: &str = "arn:aws:ssm:us-west-2:123456789012:parameter/app/flag";

fn class_with(objects: &str, more: &[(&str, &str)]) -> Result<Class, String> {
    let objects = objects
        .replace("SECRET_ARN", SECRET_ARN)
        .replace("STANDBY_ARN", STANDBY_ARN)
        .replace("PARAMETER_ARN", PARAMETER_ARN)
        .replace("SM", "objectType: secretsmanager");
    let mut parameters = Parameters::from([
        ("region".to_owned(), "us-west-2".to_owned()),
        ("objects".to_owned(), objects),
    ]);
    parameters.extend(more.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())));
    Class::new(&parameters, None).map_err(|error| error.to_string())
}

fn class(objects: &str) -> Result<Class, String> {
    class_with(objects, &[("failoverRegion", "us-east-2")])
}

fn entry(objects: &str) -> Entry {
    let mut class = class(objects).unwrap_or_else(|error| panic!("{objects}: {error}"));
    class.entries.remove(0)
}

fn refused(rows: &[(&str, &str)]) {
    for (objects, start) in rows {
        let Err(error) = class(objects) else {
            panic!("{objects} is taken")
        };
        assert!(error.starts_with(start), "{objects}: {error}");
    }
}

#[test]
fn aws_descriptor_the_service_is_the_types_or_the_arns() {
    use Service::{ParameterStore, SecretsManager};
    for (objects, service) in [
        (
            "[{objectName: a, objectType: secretsmanager}]",
            SecretsManager,
        ),
        (
            "[{objectName: a, objectType: ssmparameter}]",
            ParameterStore,
        ),
        ("[{objectName: 'SECRET_ARN'}]", SecretsManager),
        ("[{objectName: 'PARAMETER_ARN'}]", ParameterStore),
        (
            "[{objectName: 'PARAMETER_ARN', objectType: ssmparameter}]",
            ParameterStore,
        ),
    ] {
        assert_eq!(entry(objects).first.service, service, "{objects}");
    }
    refused(&[
        (
            "[{objectName: a}]",
            "parameters.objects[0].objectType: is missing",
        ),
        (
            "[{objectName: a, objectType: sts}]",
            "parameters.objects[0].objectType: must be",
        ),
        (
            "[{objectName: a, objectType: ssm}]",
            "parameters.objects[0].objectType: must be",
        ),
        (
            "[{objectName: 'arn::'}]",
            "parameters.objects[0].objectName: must be the ARN",
        ),
        (
            "[{objectName: 'arn:aws:sts:us-west-2:1:x'}]",
            "parameters.objects[0].objectName: must be the ARN",
        ),
        (
            "[{objectName: 'arn:aws:ssm::1:parameter/x'}]",
            "parameters.objects[0].objectName: must be the ARN",
        ),
        (
            "[{objectName: 'SECRET_ARN', objectType: ssmparameter}]",
            "parameters.objects[0].objectType: is not what",
        ),
        (
            "[{objectName: 'STANDBY_ARN'}]",
            "parameters.objects[0].objectName: is in us-east-2",
        ),
    ]);
}

#[test]
fn aws_descriptor_what_is_not_a_list_of_entries() {
    refused(&[
        ("", "parameters.objects: must be a YAML list"),
        ("[]", "parameters.objects: must be a YAML list"),
        ("a: b", "parameters.objects: must be a YAML list"),
        ("[a", "parameters.objects: "),
        ("[~]", "parameters.objects[0]: must be a mapping"),
        ("[text]", "parameters.objects[0]: must be a mapping"),
        ("[{SM}]", "parameters.objects[0].objectName: is missing"),
        (
            "[{objectName: '', SM}]",
            "parameters.objects[0].objectName: is missing",
        ),
        (
            "[{objectName: [a], SM}]",
            "parameters.objects[0].objectName: must be text",
        ),
        (
            "[{objectName: a, SM, jmesPath: x}]",
            "parameters.objects[0].jmesPath: must be a list",
        ),
        (
            "[{objectName: a, SM, jmesPath: [x]}]",
            "parameters.objects[0].jmesPath[0]: must be a mapping",
        ),
        (
            "[{objectName: a, SM, failoverObject: x}]",
            "parameters.objects[0].failoverObject: must be a mapping",
        ),
        (
            "[{objectName: a, SM, objectEncoding: rot13}]",
            "parameters.objects[0].objectEncoding: must be",
        ),
    ]);
    let many = "- {objectName: a, SM}\n".repeat(1001);
    refused(&[(&many, "parameters.objects: has 1001 entries")]);
}

#[test]
fn aws_descriptor_names_in_any_case_scalars_as_text_and_nulls_as_nothing() {
    let entry = entry(
        "---\n- {OBJECTNAME: a, objecttype: ssmparameter, ObjectVersion: 2, objectAlias: ~, jmesPath: ~, backupArn: x}",
    );
    assert_eq!(entry.first.version.as_deref(), Some("2"));
    assert_eq!(entry.object.name, "a");
    let class =
        class("[{objectName: a, SM, backupArn: x, jmesPath: [{path: a, objectAlias: b, y: z}]}]");
    let unknown = class.map(|class| class.unknown);
    let expected = [
        "parameters.objects[0].jmesPath[0].y",
        "parameters.objects[0].backupArn",
    ];
    assert_eq!(unknown, Ok(expected.map(str::to_owned).to_vec()));
}

#[test]
fn aws_descriptor_versions_and_labels() {
    let both = entry("[{objectName: a, SM, objectVersion: v, objectVersionLabel: l}]").first;
    assert_eq!(
        (both.version.as_deref(), both.label.as_deref()),
        (Some("v"), Some("l"))
    );
    refused(&[(
        "[{objectName: a, objectType: ssmparameter, objectVersion: 1, objectVersionLabel: l}]",
        "parameters.objects[0].objectVersion: cannot be given with a label",
    )]);
}

#[test]
fn aws_descriptor_file_names() {
    for (objects, name) in [
        ("[{objectName: mypath/a, SM}]", "mypath_a"),
        ("[{objectName: a, SM, objectAlias: x/y}]", "x_y"),
        ("[{objectName: 'SECRET_ARN'}]", SECRET_ARN),
        (
            "[{objectName: 'PARAMETER_ARN'}]",
            "arn:aws:ssm:us-west-2:123456789012:parameter_app_flag",
        ),
    ] {
        assert_eq!(entry(objects).object.name, name);
    }
    let off = |name: &str| {
        let objects = format!("[{{objectName: a, SM, objectAlias: '{name}'}}]");
        class_with(&objects, &[("pathTranslation", "False")])
    };
    for wrong in [
        "../a", "./../a", "a/../b", "a/..", "..", "..a", "a//b", "./a",
    ] {
        let error = off(wrong).err().expect(wrong);
        assert!(
            error.starts_with("parameters.objects[0].objectAlias: "),
            "{error}"
        );
    }
    for right in ["a/b", "x../y", "x..", "/a"] {
        assert!(off(right).is_ok(), "{right}");
    }
    let traversal = "[{objectName: 'arn:aws:ssm:us-west-2:1:parameter/../x'}]";
    let error = class_with(traversal, &[("pathTranslation", "False")]).err();
    assert!(error.is_some_and(|e| e.starts_with("parameters.objects[0].objectName: ")));
}

#[test]
fn aws_descriptor_no_two_files_of_one_name() {
    let same = "parameters.objects[1].objectName: gives a file of the same name";
    let alias = "parameters.objects[1].objectAlias: gives a file of the same name";
    refused(&[
        ("[{objectName: a, SM}, {objectName: a, SM}]", same),
        (
            "[{objectName: a, SM, objectAlias: x}, {objectName: a, SM, objectAlias: x}]",
            alias,
        ),
        (
            "[{objectName: a, SM, objectAlias: x, objectVersionLabel: l}, {objectName: a, SM, objectAlias: x, objectVersionLabel: m}]",
            alias,
        ),
        (
            "[{objectName: a, SM, objectVersionLabel: l}, {objectName: a, SM, objectVersionLabel: l}]",
            same,
        ),
        (
            "[{objectName: a, SM, objectAlias: x, objectVersionLabel: l}, {objectName: a, SM, objectAlias: x, objectVersionLabel: l}]",
            alias,
        ),
        (
            "[{objectName: a, SM, objectAlias: x}, {objectName: b, SM, objectAlias: x}]",
            alias,
        ),
        // The incumbent takes these, and the last one wins without a word.
        (
            "[{objectName: a, SM, objectVersionLabel: l}, {objectName: a, SM, objectVersionLabel: m}]",
            same,
        ),
        (
            "[{objectName: a/b, SM}, {objectName: c, SM, objectAlias: a_b}]",
            alias,
        ),
        (
            "[{objectName: x, SM}, {objectName: c, SM, objectAlias: x}]",
            alias,
        ),
        (
            "[{objectName: a, SM, objectAlias: x, jmesPath: [{path: p, objectAlias: x}]}]",
            "parameters.objects[0].jmesPath[0].objectAlias: gives a file of the same name as parameters.objects[0].objectAlias",
        ),
    ]);
    for objects in [
        "[{objectName: a, SM, objectAlias: x}, {objectName: a, SM, objectAlias: y}]",
        "[{objectName: a, SM, objectAlias: x, objectVersionLabel: l}, {objectName: a, SM, objectAlias: y, objectVersionLabel: m}]",
    ] {
        assert!(class(objects).is_ok(), "{objects}");
    }
    let below = "[{objectName: a, SM}, {objectName: a/b, SM}]";
    let error = class_with(below, &[("pathTranslation", "False")]).err();
    assert!(error.is_some_and(|e| e.contains("below the one of parameters.objects[0].objectName")));
}

#[test]
fn aws_descriptor_permissions_are_inherited() {
    let modes = |objects: &str| {
        let view = entry(objects).view;
        let Members::Listed(members) = view.members else {
            panic!("they are listed")
        };
        (
            view.mode,
            members.iter().map(|m| m.mode).collect::<Vec<_>>(),
        )
    };
    let jmes =
        "jmesPath: [{path: a, objectAlias: x, filePermission: '0777'}, {path: b, objectAlias: y}]";
    let own = modes(&format!(
        "[{{objectName: a, SM, filePermission: '0600', {jmes}}}]"
    ));
    assert_eq!(own, (Some(0o600), vec![Some(0o777), Some(0o600)]));
    let none = modes(&format!("[{{objectName: a, SM, {jmes}}}]"));
    assert_eq!(none, (None, vec![Some(0o777), None]));
    for wrong in ["0900", "abc9", "000", "00000", "4755", "420", "+640"] {
        let own = format!("[{{objectName: a, SM, filePermission: '{wrong}'}}]");
        let jmes = format!(
            "[{{objectName: a, SM, jmesPath: [{{path: a, objectAlias: x, filePermission: '{wrong}'}}]}}]"
        );
        refused(&[
            (
                &own,
                "parameters.objects[0].filePermission: must be four octal digits",
            ),
            (
                &jmes,
                "parameters.objects[0].jmesPath[0].filePermission: must be four octal",
            ),
        ]);
    }
}

#[test]
fn aws_descriptor_jmes_paths() {
    refused(&[
        (
            "[{objectName: a, SM, jmesPath: [{path: a}]}]",
            "parameters.objects[0].jmesPath[0].objectAlias: is missing",
        ),
        (
            "[{objectName: a, SM, jmesPath: [{objectAlias: a}]}]",
            "parameters.objects[0].jmesPath[0].path: is missing",
        ),
        (
            "[{objectName: a, SM, jmesPath: [{path: .a, objectAlias: x}]}]",
            "parameters.objects[0].jmesPath[0].path: is not a JMESPath",
        ),
        (
            "[{objectName: a, SM, jmesPath: [{path: my-key, objectAlias: x}]}]",
            "parameters.objects[0].jmesPath[0].path: is not a JMESPath",
        ),
    ]);
    let hint = class("[{objectName: a, SM, jmesPath: [{path: my-key, objectAlias: x}]}]").err();
    assert!(hint.is_some_and(|hint| hint.contains(r#"path: '"my-key"'"#)));
    let nested = |text: &str, count| {
        let path = text.repeat(count);
        format!("[{{objectName: a, SM, jmesPath: [{{path: 'a{path}', objectAlias: x}}]}}]")
    };
    let field = "parameters.objects[0].jmesPath[0].path: ";
    for operator in ["(", "[", "{", ".a", "!", "&", "|a", "||a", "<a", "[0]"] {
        // As deep as it gets, on the small stack of a test.
        let _ = class(&nested(
            operator,
            100 / operator.matches('|').count().max(1),
        ));
        let limit = format!("{field}must not have more than 100");
        refused(&[(&nested(operator, 101), &limit)]);
    }
}

#[test]
fn aws_descriptor_failover_objects() {
    for right in [
        "[{objectName: 'SECRET_ARN', objectAlias: x, failoverObject: {objectName: 'STANDBY_ARN'}}]",
        "[{objectName: a, SM, objectAlias: x, objectVersion: 1, failoverObject: {objectName: b, objectVersion: 1}}]",
        "[{objectName: a, SM, failoverObject: {objectVersionLabel: l}}]",
    ] {
        assert!(class(right).is_ok(), "{right}");
    }
    let label = entry(
        "[{objectName: a, SM, objectVersionLabel: k, failoverObject: {objectVersionLabel: l}}]",
    );
    assert_eq!(
        (label.standby.id.as_str(), label.standby.label.as_deref()),
        ("a", Some("l"))
    );
    refused(&[
        (
            "[{objectName: a, SM, failoverObject: {objectName: b}}]",
            "parameters.objects[0].objectAlias: is missing",
        ),
        (
            "[{objectName: 'SECRET_ARN', objectAlias: x, failoverObject: {objectName: b}}]",
            "parameters.objects[0].failoverObject.objectType: is missing",
        ),
        (
            "[{objectName: a, SM, objectAlias: x, failoverObject: {objectName: 'PARAMETER_ARN'}}]",
            "parameters.objects[0].failoverObject.objectType: is not what",
        ),
        (
            "[{objectName: 'SECRET_ARN', objectAlias: x, failoverObject: {objectName: 'PARAMETER_ARN'}}]",
            "parameters.objects[0].failoverObject.objectName: must be of the same",
        ),
        (
            "[{objectName: a, SM, objectAlias: x, failoverObject: {objectName: 'SECRET_ARN'}}]",
            "parameters.objects[0].failoverObject.objectName: must be in a failoverRegion",
        ),
        (
            "[{objectName: a, SM, objectAlias: x, objectVersion: 1, failoverObject: {objectName: b}}]",
            "parameters.objects[0].failoverObject.objectVersion: must be that",
        ),
        (
            "[{objectName: a, objectType: ssmparameter, objectVersion: 1, objectAlias: x, failoverObject: {objectName: b, objectVersion: 1, objectVersionLabel: l}}]",
            "parameters.objects[0].failoverObject.objectVersion: cannot be given",
        ),
    ]);
    let nowhere = "[{objectName: a, SM, objectAlias: x, failoverObject: {objectName: b}}]";
    let error = class_with(nowhere, &[]).err();
    assert!(error.is_some_and(|e| e.starts_with("parameters.failoverRegion: is missing")));
}

#[test]
fn a_prefix_ends_in_the_only_star() {
    for right in [
        "[{objectName: app/*, SM}]",
        "[{objectName: app-*, SM}]",
        "[{objectName: /app/*, objectType: ssmparameter}]",
    ] {
        assert!(class(right).is_ok(), "{right}");
    }
    let field = "parameters.objects[0].objectName: ";
    refused(&[
        ("[{objectName: '*', SM}]", field),
        ("[{objectName: 'a*b', SM}]", field),
        ("[{objectName: 'a*b*', SM}]", field),
        ("[{objectName: 'SECRET_ARN*'}]", field),
        ("[{objectName: 'app/*', objectType: ssmparameter}]", field),
        ("[{objectName: '/app-*', objectType: ssmparameter}]", field),
        ("[{objectName: app/*, SM, objectAlias: x}]", field),
        ("[{objectName: app/*, SM, objectVersionLabel: x}]", field),
        (
            "[{objectName: app/*, SM, jmesPath: '*'}]",
            "parameters.objects[0].jmesPath: cannot be used",
        ),
    ]);
}

#[test]
fn rule_c3_every_difference_makes_another_request() {
    let variants = [
        "{objectName: a, SM}",
        "{objectName: a, objectType: ssmparameter}",
        "{objectName: a, SM, objectAlias: b}",
        "{objectName: a, SM, objectVersion: 1}",
        "{objectName: a, SM, objectVersionLabel: 1}",
        "{objectName: a, SM, filePermission: '0600'}",
        "{objectName: a, SM, objectEncoding: hex}",
        "{objectName: a, SM, jmesPath: '*'}",
        "{objectName: a, SM, jmesPath: [{path: x, objectAlias: y}]}",
        "{objectName: a, SM, jmesPath: [{path: y, objectAlias: x}]}",
        "{objectName: a, SM, jmesPath: [{path: y, objectAlias: x, objectEncoding: hex}]}",
        "{objectName: a, SM, failoverObject: {objectVersionLabel: l}}",
        "{objectName: a*, SM}",
    ];
    let request = |variant: &&str| entry(&format!("[{variant}]")).object.request;
    let requests: std::collections::BTreeSet<_> = variants.iter().map(request).collect();
    assert_eq!(requests.len(), variants.len());
    let off = class_with("[{objectName: a*, SM}]", &[("pathTranslation", "False")]);
    let off = off.map(|mut class| class.entries.remove(0).object.request);
    assert!(off.is_ok_and(|off| !requests.contains(&off)));
}
