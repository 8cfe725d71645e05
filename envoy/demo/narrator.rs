//! How a tour tells what it does: numbered steps, colours on a terminal, and a count of what came out otherwise.

use std::io::IsTerminal;
use std::process::ExitCode;

/// Tells a tour, line by line.
pub struct Narrator {
    colours: bool,
    step: u32,
    surprises: u32,
}

impl Narrator {
    /// With colours if it speaks to a terminal.
    pub fn new() -> Self {
        Self { colours: std::io::stdout().is_terminal(), step: 0, surprises: 0 }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    pub fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    pub fn green(&self, text: &str) -> String {
        self.paint("32", text)
    }

    pub fn red(&self, text: &str) -> String {
        self.paint("31", text)
    }

    /// Begins the next step.
    pub fn title(&mut self, text: &str) {
        self.step += 1;
        println!("\n{}", self.bold(&format!("{}. {text}", self.step)));
    }

    /// Shows a policy.
    pub fn quote(&self, policy: &str) {
        for line in policy.trim().lines() {
            println!("   {}", self.dim(&format!("| {line}")));
        }
    }

    /// Something came out otherwise than the tour says.
    pub fn surprise(&mut self, expected: &str) {
        self.surprises += 1;
        println!("{}", self.red(&format!("        but the tour says: {expected}")));
    }

    /// Sums up. The tour fails if anything was a surprise.
    pub fn end(&self) -> ExitCode {
        if self.surprises == 0 {
            println!("\nEverything came out as the tour says.");
            return ExitCode::SUCCESS;
        }
        println!("\n{}", self.red(&format!("Not as the tour says: {} of its answers.", self.surprises)));
        ExitCode::FAILURE
    }
}
