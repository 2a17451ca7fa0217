//! Emulates a terminal. The emulation interprets only the control sequences that the recorded programs print.

/// The text on the screen, and the position of the cursor.
pub(super) struct Terminal {
    rows: Vec<Vec<char>>,
    columns: usize,
    row: usize,
    column: usize,
    /// The start of a control sequence whose end has not been written yet.
    pending: String,
}

impl Terminal {
    pub(super) fn new(columns: usize, rows: usize) -> Self {
        Self { rows: vec![vec![' '; columns]; rows], columns, row: 0, column: 0, pending: String::new() }
    }

    pub(super) fn write(&mut self, text: &str) {
        for c in text.chars() {
            if self.pending.is_empty() && c != '\u{1b}' {
                self.put(c);
                continue;
            }
            self.pending.push(c);
            let is_complete = c.is_ascii_alphabetic() || self.pending.len() > 1 && !self.pending.starts_with("\u{1b}[");
            if is_complete {
                let sequence = std::mem::take(&mut self.pending);
                self.control(&sequence);
            }
        }
    }

    /// Returns the lines of the screen without the spaces at their ends.
    pub(super) fn lines(&self) -> Vec<String> {
        self.rows.iter().map(|row| row.iter().collect::<String>().trim_end().to_owned()).collect()
    }

    fn put(&mut self, c: char) {
        match c {
            '\r' => self.column = 0,
            '\n' => self.next_row(),
            '\u{8}' => self.column = self.column.saturating_sub(1),
            c if c.is_control() => {}
            c => {
                if self.column == self.columns {
                    self.column = 0;
                    self.next_row();
                }
                self.rows[self.row][self.column] = c;
                self.column += 1;
            }
        }
    }

    fn next_row(&mut self) {
        self.row += 1;
        if self.row == self.rows.len() {
            self.row -= 1;
            self.rows.remove(0);
            self.rows.push(vec![' '; self.columns]);
        }
    }

    /// Executes a control sequence that moves the cursor or erases text. Ignores sequences for colours and modes.
    fn control(&mut self, sequence: &str) {
        let Some(body) = sequence.strip_prefix("\u{1b}[") else { return };
        let (argument, command) = body.split_at(body.len() - 1);
        let number = argument.parse().unwrap_or(0);
        match command {
            "A" => self.row = self.row.saturating_sub(number.max(1)),
            "B" => self.row = (self.row + number.max(1)).min(self.rows.len() - 1),
            "C" => self.column = (self.column + number.max(1)).min(self.columns - 1),
            "D" => self.column = self.column.saturating_sub(number.max(1)),
            "G" => self.column = number.max(1) - 1,
            "K" if number == 0 => self.rows[self.row][self.column..].fill(' '),
            "K" => self.rows[self.row].fill(' '),
            "J" if number == 0 => {
                self.rows[self.row][self.column..].fill(' ');
                self.rows[self.row + 1..].iter_mut().for_each(|row| row.fill(' '));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_bar_replaces_its_lines() {
        let mut terminal = Terminal::new(10, 3);
        terminal.write("$ a\r\nbar 1\r\nmessage\r\u{1b}[1A\u{1b}[2Kbar 2\u{1b}[");
        terminal.write("K\n\r\u{1b}[2K\u{1b}[32mend\u{1b}[0m");
        assert_eq!(terminal.lines(), ["$ a", "bar 2", "end"]);
    }

    #[test]
    fn long_line_wraps_and_last_row_scrolls() {
        let mut terminal = Terminal::new(4, 2);
        terminal.write("abcdef\r\ng");
        assert_eq!(terminal.lines(), ["ef", "g"]);
    }
}
