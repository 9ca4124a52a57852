defmodule Barytherium.Program do
  @moduledoc false
  # The program `stomp` of the release `stomp_tail`: what the Mix tasks do, for people without Elixir.

  alias Barytherium.{Bench, Record, Replay, Send, Tail}

  @usage """
  The command line of a STOMP broker.

      stomp tail URL ...     shows messages as they arrive
      stomp send URL ...     sends messages, and waits until the broker has confirmed them
      stomp bench [URL] ...  measures how many it takes and delivers, and how long they take
      stomp record URL FILE  records what a destination gets, with times
      stomp replay FILE ...  plays a recording, as a broker

  `stomp tail --help` and so on say more.
  """

  @spec main() :: no_return()
  def main do
    {:ok, _started} = Application.ensure_all_started(:barytherium)
    System.halt(run(System.argv()))
  end

  @doc "Runs a command, and returns the exit status."
  @spec run([String.t()]) :: non_neg_integer()
  def run(["tail" | args]), do: Tail.run(args, "stomp tail")
  def run(["send" | args]), do: Send.run(args, "stomp send")
  def run(["bench" | args]), do: Bench.run(args, "stomp bench")
  def run(["record" | args]), do: Record.run(args, "stomp record")
  def run(["replay" | args]), do: Replay.run(args, "stomp replay")

  def run([help | _args]) when help in ["help", "--help", "-h"] do
    IO.puts(@usage)
    0
  end

  def run(_other) do
    IO.puts(:stderr, @usage)
    2
  end
end
