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
