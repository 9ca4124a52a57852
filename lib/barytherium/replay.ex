defmodule Barytherium.Replay do
  @moduledoc false
  # The program behind `mix barytherium.replay`.

  alias Barytherium.{Frame, Recording, TestBroker, Text}
  alias Barytherium.Replay.{Help, Options}
  alias Barytherium.Tail.{CommandLine, Signals}

  # Frames at the beginning in which a destination is looked for: there is one CONNECTED for each connection.
  @beginning 1_000

  @doc "Runs the program, and returns its exit status. `command` is its name."
  @spec run([String.t()], String.t()) :: non_neg_integer()
  def run(argv, command), do: CommandLine.run(argv, command, {Options, Help}, &start/1)

  defp start(options) do
    # A client may be there, and the signal come, as soon as the broker is.
    player = self()
    Signals.stop_with(&send(player, {:end, &1}))

    given =
      for {name, value} <- Map.take(options, [:port, :speed, :from]), value, do: {name, value}

    case TestBroker.start_link([replay: options.file] ++ given) do
      {:ok, _broker} ->
        IO.puts(:stderr, Text.line(text(options)))
        receive do: ({:end, status} -> status)

      {:error, reason} ->
        CommandLine.complain(failure(reason, options))
        1
    end
  end

  defp text(%{file: file} = options) do
    first = file |> Recording.stream(options.from || 0) |> Stream.take(@beginning)

    case Enum.find(first, fn {_time, frame} -> frame.command == :message end) do
      nil ->
        "there is no message in #{file}" <> if(options.from, do: " after this time", else: "")

      {time, frame} ->
        from = time |> DateTime.from_unix!(:microsecond) |> DateTime.truncate(:second)
        url = "stomp://127.0.0.1:#{options.port}#{Frame.header(frame, "destination")}"
        "#{url} plays #{file} from #{from} on. Ctrl-C ends"
    end
  end

  defp failure(:eaddrinuse, options),
    do: "the port #{options.port} is in use; --port N is another"

  defp failure({:replay, :not_a_recording}, options),
    do: "no recording: #{Text.line(options.file)}"

  defp failure({:replay, reason}, options),
    do: "cannot read #{Text.line(options.file)}: #{:file.format_error(reason)}"

  defp failure(reason, options),
    do: "cannot listen on port #{options.port}: #{:inet.format_error(reason)}"
end
