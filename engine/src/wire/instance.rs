//! Names in /dev/shm.

/// The longest name of an instance.
const INSTANCE_BYTES_MAX: usize = 64;

/// Whether an instance may have this name: it becomes part of a file name in /dev/shm. The empty
/// name is the default instance's.
pub fn is_instance_name(name: &str) -> bool {
    name.len() <= INSTANCE_BYTES_MAX
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

/// The file name of an instance's control segment.
pub fn control_segment_name(instance: &str) -> String {
    match instance {
        "" => "lapce_ipc_v2_control".to_owned(),
        _ => format!("lapce_ipc_v2_{instance}_control"),
    }
}

/// Whether this can be the name of a control segment: a server's word is not taken for a path.
pub fn is_control_segment_name(name: &str) -> bool {
    name.strip_prefix("lapce_ipc_v2_")
        .and_then(|rest| rest.strip_suffix("control"))
        .is_some_and(|middle| is_instance_name(middle.trim_end_matches('_')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_control_segments() {
        for instance in ["", "a", "x-1_2.z"] {
            assert!(is_control_segment_name(&control_segment_name(instance)));
        }
        for name in [
            "",
            "control",
            "lapce_ipc_v2_",
            "lapce_ipc_v2_../../etc/control",
            "/a",
        ] {
            assert!(!is_control_segment_name(name), "{name}");
        }
        assert!(!is_instance_name("a/b") && !is_instance_name(&"a".repeat(65)));
    }
}
