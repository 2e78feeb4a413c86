use super::*;

#[test]
fn only_a_runc_with_the_fixes_is_full() {
    for (line, fixed) in [
        ("runc version 1.1.5+ds1", false),
        ("runc version 1.1.15", false),
        ("runc version 1.2.7", false),
        ("runc version 1.2.8", true),
        ("runc version 1.3.0", false),
        ("runc version 1.3.3-rc.1", false),
        ("runc version 1.3.3", true),
        ("runc version 1.4.1", true),
        ("runc version 2.0.0", true),
    ] {
        assert_eq!(version_of(line).is_some_and(is_fixed), fixed, "{line}");
    }
    assert_eq!(version_of("runc version unknown"), None);
}

#[test]
fn a_runsc_without_a_flag_that_ls_needs_is_told_by_its_day() {
    for (line, is_without) in [
        ("runsc version 0.0~20221219.0", true),
        ("runsc version release-20210823.0", true),
        ("runsc version release-20251110.0", false),
        ("runsc version VERSION_MISSING", false),
    ] {
        assert_eq!(is_without_no_automount(line), is_without, "{line}");
    }
}

#[test]
fn a_trial_that_failed_says_why_and_what_is_needed() {
    let trials = Trials {
        user_namespace: Some("could not make namespaces: Operation not permitted".to_owned()),
        ..Trials::default()
    };
    let findings = kernel(&trials, 0);
    assert_eq!(
        findings[0],
        Finding {
            control: "user namespaces",
            enforced: Enforced::None,
            found: "could not make namespaces: Operation not permitted".to_owned(),
            needed: findings[0].needed.clone(),
            required: true,
        }
    );
    assert!(
        findings[0]
            .needed
            .as_ref()
            .unwrap()
            .contains("unprivileged_userns_clone")
    );
    assert!(
        findings[1..]
            .iter()
            .all(|finding| finding.enforced == Enforced::Full && finding.needed.is_none())
    );
}

#[test]
fn no_cgroups_are_said_with_their_reason() {
    let findings = cgroups(&Cgroups::none("read-only"));
    assert_eq!(
        (findings[0].enforced, findings[0].found.as_str()),
        (Enforced::None, "read-only")
    );
    assert!(findings[1..].iter().all(|finding| finding.enforced == Enforced::None));
}

#[test]
fn every_guarantee_is_told_and_one_whose_step_fails_is_none() {
    let cgroups = Cgroups::none("read-only");
    let facts = Facts {
        cgroups: &cgroups,
        gaps: &[],
        landlock: Some(3),
    };
    let trials = Trials {
        seccomp: Some("could not load the filter: Invalid argument".to_owned()),
        ..Trials::default()
    };
    let guarantees = guarantees(&trials, &facts);
    assert_eq!(guarantees.len(), Guarantee::all().count());
    let none: Vec<_> = guarantees
        .iter()
        .filter(|control| control.enforced == Enforced::None)
        .map(|control| control.control.as_str())
        .collect();
    assert_eq!(none, ["seccomp", "sockets", "limit.memory", "limit.cpus"]);
}
