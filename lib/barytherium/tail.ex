defmodule Barytherium.Tail do
  @moduledoc false
  # The program behind `mix barytherium.tail` and `stomp tail`. `Tail.Session` does the work; this module
  # prepares it, and waits for it.

  alias Barytherium.Tail.{Help, Login, Options, Session, Signals, Terminal}
  alias Barytherium.Text

  # `timeout` signals its child, and then the group of processes that the child belongs to. Nobody
  # presses Ctrl-C twice in so few milliseconds.
  @one_signal 200

  @doc "Runs the program, and returns its exit status. `command` is its name."
  @spec run([String.t()], String.t(), Terminal.t()) :: non_neg_integer()
  def run(argv, command, terminal \\ Terminal.detect()) do
    case Options.parse(argv) do
      {:ok, options} ->
        follow(options, terminal)

      :help ->
        IO.puts(Help.text(command))
        0

      {:error, reason} ->
        complain("#{Options.message(reason)}\nSee #{command} --help")
        2
    end
  end

  # The session reports the events of the connection.
  defp follow(options, terminal) do
    Login.quietly(fn ->
      try do
        follow_quietly(options, terminal)
      after
        Signals.untrap()
      end
    end)
  end

  defp follow_quietly(options, terminal) do
    Signals.trap(&System.halt/1)
    passcode = Login.passcode(options.target)

    case Session.start(options, terminal, passcode) do
      {:ok, session} ->
        await(session)

      {:error, {:save, reason}} ->
        complain("cannot write to #{Text.line(options.save)}: #{reason}")
        1
    end
  end

  defp await(session) do
    monitor = Process.monitor(session)
    Signals.untrap()
    Signals.trap(stopper(session))
    diverted = Terminal.divert_ctrl_c()

    try do
      receive do
        {:DOWN, ^monitor, :process, ^session, reason} -> status(reason)
      end
    after
      Terminal.release(diverted)
    end
  end

  # The first signal ends the session in an orderly way. The broker may not answer, so a later one ends the
  # VM.
  defp stopper(session) do
    first = :atomics.new(1, [])

    fn status ->
      now = System.monotonic_time(:millisecond)

      case :atomics.compare_exchange(first, 1, 0, now) do
        :ok -> Session.stop(session, status)
        began when now - began > @one_signal -> System.halt(status)
        _the_same_signal_again -> :ok
      end
    end
  end

  defp status({:shutdown, {:status, status}}), do: status

  defp status(crash) do
    complain("an internal error: " <> Text.block(Exception.format_exit(crash)))
    1
  end

  defp complain(text), do: IO.puts(:stderr, "Error: " <> text)
end
