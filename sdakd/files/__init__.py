"""What several commands read and write: images, test sets, results, runs, generators; intervals of means."""
