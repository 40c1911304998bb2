//! The TypeScript that interfaces compile against is what this crate says.

use std::{fs, path::Path};

#[test]
fn the_typescript_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("bindings/owner.ts");
    let generated = pool_api::typescript();
    // UPDATE_BINDINGS=1 writes it anew.
    if std::env::var_os("UPDATE_BINDINGS").is_some() {
        fs::create_dir_all(file.parent().expect("it lies in a folder")).expect("the folder can be made");
        fs::write(&file, &generated).expect("the file can be written");
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(committed, generated, "run `UPDATE_BINDINGS=1 cargo test -p pool-api --test bindings` and commit it");
}
