"""Methods that DST is compared with: one critic learner each, in the same harness and on the same networks."""
