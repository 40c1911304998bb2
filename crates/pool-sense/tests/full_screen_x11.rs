//! Does a window cover the screen? On real X servers, with and without a window manager.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::time::{Duration, Instant};

use pool_sense::{Presence, Senses, Surroundings};
use pool_types::Reading;
use x11rb::{
    COPY_DEPTH_FROM_PARENT,
    connection::Connection,
    protocol::xproto::{
        AtomEnum, ClientMessageEvent, ConnectionExt as _, CreateWindowAux, EventMask, PropMode, Window, WindowClass,
    },
    rust_connection::RustConnection,
    wrapper::ConnectionExt as _,
};

use support::{nowhere, start, wait_for, x_server::XServer};

const SOON: Duration = Duration::from_secs(10);

/// Another program on the server.
struct Program {
    connection: RustConnection,
    root: Window,
}

impl Program {
    fn on(server: &XServer) -> Self {
        let (connection, screen) = x11rb::connect(Some(&server.display)).unwrap();
        let root = connection.setup().roots[screen].root;
        Self { connection, root }
    }

    fn atom(&self, name: &str) -> u32 {
        self.connection.intern_atom(false, name.as_bytes()).unwrap().reply().unwrap().atom
    }

    fn window(&self, width: u16, height: u16) -> Window {
        let window = self.connection.generate_id().unwrap();
        let look = CreateWindowAux::new().background_pixel(0);
        let class = WindowClass::INPUT_OUTPUT;
        let depth = COPY_DEPTH_FROM_PARENT;
        let made = self.connection.create_window(depth, window, self.root, 0, 0, width, height, 0, class, 0, &look);
        made.unwrap().check().unwrap();
        window
    }

    fn set_atoms(&self, window: Window, property: &str, values: &[&str]) {
        let values: Vec<u32> = values.iter().map(|value| self.atom(value)).collect();
        let property = self.atom(property);
        let set = self.connection.change_property32(PropMode::REPLACE, window, property, AtomEnum::ATOM, &values);
        set.unwrap().check().unwrap();
    }

    fn show(&self, window: Window) {
        self.connection.map_window(window).unwrap().check().unwrap();
    }

    fn set_active(&self, window: Window) {
        let property = self.atom("_NET_ACTIVE_WINDOW");
        let set =
            self.connection.change_property32(PropMode::REPLACE, self.root, property, AtomEnum::WINDOW, &[window]);
        set.unwrap().check().unwrap();
    }

    /// Asks the window manager, as a player does when the owner presses F11.
    fn ask_for_full_screen(&self, window: Window, add: bool) {
        let (state, full_screen) = (self.atom("_NET_WM_STATE"), self.atom("_NET_WM_STATE_FULLSCREEN"));
        let message = ClientMessageEvent::new(32, window, state, [u32::from(add), full_screen, 0, 1, 0]);
        let to = EventMask::SUBSTRUCTURE_REDIRECT | EventMask::SUBSTRUCTURE_NOTIFY;
        self.connection.send_event(false, self.root, to, message).unwrap().check().unwrap();
    }
}

fn on(server: &XServer) -> Senses {
    start(&Surroundings { x11_display: Some(server.display.clone()), ..nowhere() })
}

/// Expects it of a reading that was begun after what the test has just done: the one before may say the same.
fn expect(senses: &Senses, full_screen: bool, reason: &str) {
    let (done, a_reading_takes) = (Instant::now(), Duration::from_millis(200));
    wait_for(senses, SOON, reason, |now| {
        let is_new = now.full_screen.age.is_some_and(|age| age + a_reading_takes < done.elapsed());
        is_new && now.full_screen.reading == Reading::Known(full_screen)
    });
}

#[test]
fn a_player_goes_full_screen_and_back_under_a_window_manager() {
    let server = XServer::start();
    let _manager = server.openbox();
    let player = Program::on(&server);
    let managed = || {
        let property = player.atom("_NET_SUPPORTING_WM_CHECK");
        let ask = player.connection.get_property(false, player.root, property, AtomEnum::WINDOW, 0, 1).unwrap();
        ask.reply().unwrap().type_ != x11rb::NONE
    };
    let began = Instant::now();
    while !managed() {
        assert!(began.elapsed() < SOON, "openbox starts");
        std::thread::sleep(Duration::from_millis(20));
    }
    let senses = on(&server);
    expect(&senses, false, "an empty desktop is no full screen");
    let window = player.window(400, 300);
    player.show(window);
    player.ask_for_full_screen(window, true);
    expect(&senses, true, "the film covers the screen");
    player.ask_for_full_screen(window, false);
    expect(&senses, false, "back in its window");
    player.ask_for_full_screen(window, true);
    expect(&senses, true, "and again");
    drop(player);
    expect(&senses, false, "the player was closed");
}

#[test]
fn a_game_without_a_frame_covers_the_monitor() {
    let server = XServer::start();
    let senses = on(&server);
    let game = Program::on(&server);
    expect(&senses, false, "nothing is there");
    let small = game.window(640, 480);
    game.show(small);
    game.set_active(small);
    expect(&senses, false, "a window among others");
    let large = game.window(800, 600);
    game.show(large);
    game.set_active(large);
    expect(&senses, true, "it covers all of the only monitor");
    let maximised = ["_NET_WM_STATE_MAXIMIZED_HORZ", "_NET_WM_STATE_MAXIMIZED_VERT"];
    game.set_atoms(large, "_NET_WM_STATE", &maximised);
    expect(&senses, false, "a maximised editor is work, not a game");
    game.set_atoms(large, "_NET_WM_STATE", &["_NET_WM_STATE_FULLSCREEN"]);
    expect(&senses, true, "it says so itself");
    game.set_atoms(large, "_NET_WM_WINDOW_TYPE", &["_NET_WM_WINDOW_TYPE_DESKTOP"]);
    expect(&senses, false, "the desktop's own window covers everything, always");
}

#[test]
fn without_a_window_manager_the_topmost_window_counts() {
    let server = XServer::start();
    let senses = on(&server);
    let kiosk = Program::on(&server);
    kiosk.show(kiosk.window(800, 600));
    expect(&senses, true, "the topmost window covers the screen");
    kiosk.show(kiosk.window(100, 100));
    expect(&senses, false, "a small one lies on top");
}

#[test]
fn without_a_display_it_is_unavailable() {
    let told = start(&nowhere()).snapshot().full_screen.reading.to_string();
    assert_eq!(told, "unavailable, because no X11 display is set");
}
