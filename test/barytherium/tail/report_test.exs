defmodule Barytherium.Tail.ReportTest do
  use ExUnit.Case, async: true

  alias Barytherium.Tail.Report

  test "counts and rates" do
    assert Report.counts(1, 10, 500) ==
             "1 message, 10 B of bodies in 0.5 s (2 messages/s, 20 B/s)"

    assert Report.counts(1_234_567, 98_765_432_100, 10_000) ==
             "1,234,567 messages, 98.8 GB of bodies in 10.0 s (123,457 messages/s, 9.9 GB/s)"

    assert Report.rate(0, 0, 1) == "0 messages/s, 0 B/s"
    assert Report.rate(999, 1_500, 1_000) == "999 messages/s, 1.5 kB/s"
  end
end
