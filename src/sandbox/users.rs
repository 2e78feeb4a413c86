//! Who is who in an image: its own tables of users and groups, and the agent added to them. What they say is the image maker's word
//! and gives nobody anything; programs only want a name for the id that they run under.

/// One of the two tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    Users,
    Groups,
}

/// What is read of a table: real ones have some kilobytes.
pub const MOST_BYTES: u64 = 1 << 20;

impl Table {
    pub const BOTH: [Table; 2] = [Table::Users, Table::Groups];

    /// In `/etc`.
    pub fn name(self) -> &'static str {
        match self {
            Table::Users => "passwd",
            Table::Groups => "group",
        }
    }

    /// The table with the agent; `None` where somebody has its id already. An image without one has root alone.
    pub fn with_agent(self, own: Option<&str>, (uid, gid): (u32, u32)) -> Option<String> {
        let (root, id, agent) = match self {
            Table::Users => (
                "root:x:0:0:root:/root:/bin/sh\n",
                uid,
                format!("agent:x:{uid}:{gid}:agent:/home/agent:/bin/sh\n"),
            ),
            Table::Groups => ("root:x:0:\n", gid, format!("agent:x:{gid}:\n")),
        };
        let mut text = own.unwrap_or(root).to_owned();
        let has_id = |line: &str| line.split(':').nth(2) == Some(&id.to_string());
        if text.lines().any(has_id) {
            return None;
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&agent);
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_added_where_nobody_has_its_id() {
        let agent = (1000, 1001);
        let users = Table::Users.with_agent(Some("root:x:0:0::/:/bin/sh"), agent);
        assert_eq!(
            users.unwrap(),
            "root:x:0:0::/:/bin/sh\nagent:x:1000:1001:agent:/home/agent:/bin/sh\n"
        );
        assert_eq!(
            Table::Groups.with_agent(None, agent).unwrap(),
            "root:x:0:\nagent:x:1001:\n"
        );
        assert_eq!(
            Table::Users.with_agent(Some("node:x:1000:1000::/home/node:/bin/sh\n"), agent),
            None
        );
    }
}
