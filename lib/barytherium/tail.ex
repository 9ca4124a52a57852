defmodule Barytherium.Tail do
  @moduledoc false
  # The program behind `mix barytherium.tail` and `stomp tail`. `Tail.Session` does the work; this module
  # prepares it, and waits for it.

  alias Barytherium.Tail.{CommandLine, Help, Login, Options, Session, Signals, Terminal}
  alias Barytherium.Text

  @doc "Runs the program, and returns its exit status. `command` is its name."
  @spec run([String.t()], String.t(), Terminal.t()) :: non_neg_integer()
  def run(argv, command, terminal \\ Terminal.detect(1)),
    do: CommandLine.run(argv, command, {Options, Help}, &follow(&1, terminal))

  defp follow(options, terminal) do
    case Session.start(options, terminal, Login.passcode(options.target)) do
      {:ok, session} ->
        await(session)

      {:error, {:save, reason}} ->
        CommandLine.complain("cannot write to #{Text.line(options.save)}: #{reason}")
        1
    end
  end

  defp await(session) do
    monitor = Process.monitor(session)
    Signals.stop_with(&Session.stop(session, &1))

    receive do
      {:DOWN, ^monitor, :process, ^session, reason} -> status(reason)
    end
  end

  defp status({:shutdown, {:status, status}}), do: status

  defp status(crash) do
    CommandLine.complain("an internal error: " <> Text.block(Exception.format_exit(crash)))
    1
  end
end
