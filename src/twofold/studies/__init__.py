"""The papers' questions asked of your own data: each study is many runs or fits, a table, a plot and a report."""
