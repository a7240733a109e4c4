//! Who a container's process is: names looked up in the image's `/etc/passwd` and `/etc/group`.

use crate::api::ContainerUser;
use crate::proto::SpecUser;

/// A user, and the home directory for `HOME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub user: ContainerUser,
    pub home: String,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_lines(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let f: Vec<&str> = line.trim().split(':').collect();
        Some(Passwd {
            name: f.first()?,
            uid: f.get(2)?.parse().ok()?,
            gid: f.get(3)?.parse().ok()?,
            home: f.get(5).copied().unwrap_or(""),
        })
    })
}

fn group_lines(text: &str) -> impl Iterator<Item = (&str, u32, Vec<&str>)> {
    text.lines().filter_map(|line| {
        let f: Vec<&str> = line.trim().split(':').collect();
        let members = f.get(3).map(|m| m.split(',').collect()).unwrap_or_default();
        Some((*f.first()?, f.get(2)?.parse().ok()?, members))
    })
}

/// Resolves a request against the contents of the two files (empty if missing).
pub(crate) fn resolve(spec: &SpecUser, passwd: &str, group: &str) -> Result<Resolved, String> {
    let (user, group_name) = match spec.user.split_once(':') {
        Some((u, g)) => (u, Some(g).filter(|g| !g.is_empty())),
        None => (spec.user.as_str(), None),
    };
    let user = if user.is_empty() { "0" } else { user };
    // A name wins over a number that looks the same, as in every runtime.
    let entry = passwd_lines(passwd)
        .find(|p| p.name == user)
        .or_else(|| user.parse().ok().and_then(|uid: u32| passwd_lines(passwd).find(|p| p.uid == uid)));
    let uid = match (&entry, user.parse::<u32>()) {
        (Some(entry), _) => entry.uid,
        (None, Ok(uid)) if uid <= i32::MAX as u32 => uid,
        (None, Ok(_)) => return Err("uids and gids must be in range 0-2147483647".to_owned()),
        (None, Err(_)) => {
            return Err(format!("unable to find user {user}: no matching entries in passwd file"));
        }
    };
    let gid = match (spec.gid, group_name) {
        (Some(gid), _) => gid,
        (None, Some(name)) => match group_lines(group).find(|(n, _, _)| *n == name) {
            Some((_, gid, _)) => gid,
            None => name
                .parse()
                .map_err(|_| format!("unable to find group {name}: no matching entries in group file"))?,
        },
        (None, None) => entry.as_ref().map_or(0, |e| e.gid),
    };
    let mut groups = vec![gid];
    if !spec.strict
        && let Some(entry) = &entry
    {
        groups.extend(group_lines(group).filter(|(_, _, m)| m.contains(&entry.name)).map(|(_, g, _)| g));
    }
    groups.extend(&spec.supplemental_groups);
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|g| seen.insert(*g));
    let home = entry.map(|e| e.home).filter(|h| !h.is_empty()).unwrap_or("/").to_owned();
    Ok(Resolved { user: ContainerUser { uid, gid, supplemental_groups: groups }, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n";
        let group = "root:x:0:\nstaff:x:50:app,other\napp:x:1001:\nwheel:x:10:root\n";
        let ask = |user: &str, gid, extra: &[u32], strict| {
            let spec = SpecUser { user: user.into(), gid, supplemental_groups: extra.into(), strict };
            resolve(&spec, passwd, group)
                .map(|r| (r.user.uid, r.user.gid, r.user.supplemental_groups, r.home))
        };
        let ok = |uid, gid, groups: &[u32], home: &str| Ok((uid, gid, groups.to_vec(), home.to_owned()));
        assert_eq!(ask("", None, &[], false), ok(0, 0, &[0, 10], "/root"));
        assert_eq!(ask("app", None, &[], false), ok(1000, 1001, &[1001, 50], "/home/app"));
        assert_eq!(ask("1000", None, &[7, 50], false), ok(1000, 1001, &[1001, 50, 7], "/home/app"));
        assert_eq!(ask("1000", Some(9), &[7], true), ok(1000, 9, &[9, 7], "/home/app"));
        assert_eq!(ask("app:staff", None, &[], true), ok(1000, 50, &[50], "/home/app"));
        assert_eq!(ask("4711:99", None, &[], false), ok(4711, 99, &[99], "/"));
        assert!(ask("nobody", None, &[], false).unwrap_err().contains("unable to find user nobody"));
        assert!(ask("app:nope", None, &[], false).unwrap_err().contains("unable to find group nope"));
    }
}
