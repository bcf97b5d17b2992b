//! What the `.proto` files say about services, messages and fields, their comments included.
//!
//! The HTTP door takes from here which field a part of a path or a query is, and the OpenAPI
//! description what there is to say about it.

use std::{collections::HashMap, sync::LazyLock};

use prost_reflect::{
    DescriptorPool, FieldDescriptor, FileDescriptor, MessageDescriptor, MethodDescriptor,
};

/// Where the messages and services of the API are.
const PACKAGE: &str = "millrace.api.v1";

struct Descriptors {
    pool: DescriptorPool,
    /// By file, and the path of what a comment belongs to.
    comments: HashMap<(String, Vec<i32>), String>,
}

static DESCRIPTORS: LazyLock<Descriptors> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(millrace_protocol::DESCRIPTORS)
        .expect("our own build has written it");
    let mut comments = HashMap::new();
    for file in pool.files() {
        let locations = file.file_descriptor_proto().source_code_info.iter();
        for location in locations.flat_map(|info| &info.location) {
            let comment =
                location.leading_comments.as_ref().or(location.trailing_comments.as_ref());
            if let Some(comment) = comment {
                comments.insert((file.name().to_owned(), location.path.clone()), joined(comment));
            }
        }
    }
    Descriptors { pool, comments }
});

/// All of them.
pub(super) fn pool() -> &'static DescriptorPool {
    &DESCRIPTORS.pool
}

/// A method of one of the services of the API.
pub(super) fn method(service: &str, method: &str) -> Option<MethodDescriptor> {
    let service = pool().get_service_by_name(&format!("{PACKAGE}.{service}"))?;
    service.methods().find(|found| found.name() == method)
}

/// A message of the API.
pub(super) fn message(name: &str) -> Option<MessageDescriptor> {
    pool().get_message_by_name(&format!("{PACKAGE}.{name}"))
}

/// The name that people see: that of the message, which is unique over the packages but for few.
pub(super) fn short_name(message: &MessageDescriptor) -> String {
    let name = message.name();
    let is_taken = message.package_name() != PACKAGE
        && pool().get_message_by_name(&format!("{PACKAGE}.{name}")).is_some();
    if is_taken { format!("Chat{name}") } else { name.to_owned() }
}

/// The comment at a method; empty if there is none.
pub(super) fn comment_of_method(method: &MethodDescriptor) -> &'static str {
    comment(&method.parent_file(), method.path())
}

/// The comment at a message; empty if there is none.
pub(super) fn comment_of_message(message: &MessageDescriptor) -> &'static str {
    comment(&message.parent_file(), message.path())
}

/// The comment at a field; empty if there is none.
pub(super) fn comment_of_field(field: &FieldDescriptor) -> &'static str {
    comment(&field.parent_file(), field.path())
}

fn comment(file: &FileDescriptor, path: &[i32]) -> &'static str {
    let key = (file.name().to_owned(), path.to_vec());
    DESCRIPTORS.comments.get(&key).map_or("", String::as_str)
}

/// One line for each paragraph.
fn joined(comment: &str) -> String {
    let mut text = String::new();
    for line in comment.trim().lines().map(str::trim) {
        if line.is_empty() {
            text.push_str("\n\n");
            continue;
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push(' ');
        }
        text.push_str(line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_of_the_files_are_at_hand() {
        let method = method("GroupService", "GetGroup").expect("a method");
        assert!(comment_of_method(&method).contains("GET /v1/groups/{group_id}"));
        let message = message("BroadcastRequest").expect("a message");
        assert_eq!(
            comment_of_message(&message),
            "A notice to everybody who is online, pushed as NOTICE. It is not stored."
        );
        let field = message.get_field_by_name("notice_id").expect("a field");
        assert_eq!(comment_of_field(&field), "Empty: the server chooses one.");
    }

    #[test]
    fn names_that_people_see_are_unique() {
        let mut names = HashMap::new();
        let packages = ["millrace.api.v1", "millrace.chat.v1"];
        for message in pool().all_messages().filter(|one| packages.contains(&one.package_name())) {
            let other = names.insert(short_name(&message), message.full_name().to_owned());
            assert_eq!(other, None, "{}", message.full_name());
        }
        assert!(names.len() > 100, "{}", names.len());
    }
}
