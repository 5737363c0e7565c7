//! The loopback interface, which starts down.

use anyhow::{Context, Result, ensure};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

/// `RTM_NEWLINK`, `NLM_F_REQUEST | NLM_F_ACK`, `NLMSG_ERROR` of linux/netlink.h and rtnetlink.h.
const NEW_LINK: u16 = 16;
const REQUEST_ACK: u16 = 1 | 4;
const ERROR: u16 = 2;
/// `IFF_UP` of linux/if.h.
const UP: u32 = 1;
/// The first interface of a network namespace is always the loopback one.
const LOOPBACK: i32 = 1;

/// Asks the kernel and waits for its answer.
pub(crate) fn loopback_up() -> Result<()> {
    // No protocol is NETLINK_ROUTE.
    let cloexec = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, cloexec, None)?;
    sendto(&socket, &request(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 256];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    let code = answer_code(&answer[..length]).context("the kernel's answer is too short")?;
    ensure!(code == 0, std::io::Error::from_raw_os_error(-code));
    Ok(())
}

/// struct nlmsghdr, then struct ifinfomsg.
fn request() -> [u8; 32] {
    let mut message = [0; 32];
    message[0..4].copy_from_slice(&32_u32.to_ne_bytes());
    message[4..6].copy_from_slice(&NEW_LINK.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST_ACK.to_ne_bytes());
    message[20..24].copy_from_slice(&LOOPBACK.to_ne_bytes());
    message[24..28].copy_from_slice(&UP.to_ne_bytes());
    message[28..32].copy_from_slice(&UP.to_ne_bytes());
    message
}

/// The error number of an acknowledgement (0 or negative); `None` if it is none.
fn answer_code(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?);
    (kind == ERROR).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_names_its_length_and_the_interface() {
        let message = request();
        assert_eq!(u32::from_ne_bytes(message[0..4].try_into().unwrap()), 32);
        assert_eq!(message[20], 1);
    }

    #[test]
    fn only_an_acknowledgement_has_a_code() {
        let mut answer = [0; 36];
        assert_eq!(answer_code(&answer), None);
        answer[4] = 2;
        answer[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(answer_code(&answer), Some(-1));
        assert_eq!(answer_code(&answer[..8]), None);
    }
}
