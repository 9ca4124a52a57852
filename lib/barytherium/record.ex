defmodule Barytherium.Record do
  @moduledoc false
  # The program behind `mix barytherium.record`.

  alias Barytherium.{Client, Error, Frame, Text}
  alias Barytherium.Record.{Help, Options}
  alias Barytherium.Recording.Writer
  alias Barytherium.Tail.{CommandLine, Login, Report, Signals}

  @second 1_000
  @mib 1024 * 1024
  # Messages that may be on their way to the file.
  @prefetch 1_000
  # Milliseconds that the broker may take to answer UNSUBSCRIBE, and DISCONNECT.
  @close_timeout 2_000

  @doc "Runs the program, and returns its exit status. `command` is its name."
  @spec run([String.t()], String.t()) :: non_neg_integer()
  def run(argv, command), do: CommandLine.run(argv, command, {Options, Help}, &start/1)

  defp start(options) do
    passcode = Login.passcode(options.target)
    trapped = Process.flag(:trap_exit, true)

    status =
      case options |> Login.client(passcode) |> Login.connect(:infinity) do
        {:ok, client, info} ->
          begin(info, %{options: options, client: client, messages: 0, bytes: 0, started: now()})

        {:error, error} ->
          CommandLine.complain(Login.failure(error, options.target))
          1
      end

    Process.flag(:trap_exit, trapped)
    status
  end

  defp begin(info, %{options: options} = state) do
    case Writer.open(options.file, options.file_size * @mib) do
      {:ok, writer} -> record(info, Map.put(state, :writer, writer))
      {:error, reason} -> cannot_write(reason, options)
    end
  end

  defp record(info, %{options: options} = state) do
    recorder = self()
    Signals.stop_with(&send(recorder, {:end, &1}))
    Process.send_after(self(), :sync, @second)

    if options.seconds != :infinity,
      do: Process.send_after(self(), {:end, 0}, options.seconds * @second)

    with {:ok, state} <- append(beginning(info, options), state),
         {:ok, _subscription} <- subscribe(state) do
      notice(
        "recording #{options.target.destination} of #{info.server || "the broker"} in #{options.file}"
      )

      loop(state)
    else
      {:error, %Error{} = error} ->
        CommandLine.complain(refused(error, options))
        1

      {:error, reason} ->
        cannot_write(reason, options)
    end
  end

  defp subscribe(%{options: options} = state) do
    # A message is acknowledged when it is in the file.
    opts = [ack: :client_individual, prefetch: @prefetch, headers: options.headers]
    Client.subscribe(state.client, options.target.destination, opts)
  end

  defp refused(error, options),
    do:
      Text.line("cannot subscribe to #{options.target.destination}: #{Exception.message(error)}")

  # What comes before the messages of a connection.
  defp beginning(info, options) do
    destination = {"destination", options.target.destination}

    [
      %Frame{command: :connected, headers: info.headers},
      %Frame{command: :subscribe, headers: [destination]}
    ]
  end

  defp loop(%{client: client} = state) do
    receive do
      {:barytherium, :messages, {frames, _subscription}} -> messages(frames, state)
      {:barytherium, :client, {event, ^client}} -> event(event, state)
      {:end, status} -> ended(status, state)
      :sync -> sync(state)
      {:EXIT, ^client, reason} -> lost(reason, state)
    end
  end

  defp messages(frames, %{options: options} = state) do
    # More may come together than are wanted.
    frames =
      if options.count == :infinity,
        do: frames,
        else: Enum.take(frames, options.count - state.messages)

    case append(frames, state) do
      {:ok, state} ->
        # If it is stale, the connection has ended, and the broker will deliver them again.
        Client.ack(state.client, frames)
        state = count(frames, state)
        if state.messages == options.count, do: ended(0, state), else: loop(state)

      {:error, reason} ->
        failed(reason, state)
    end
  end

  defp count(frames, state) do
    bytes = Enum.reduce(frames, state.bytes, &(byte_size(&1.body) + &2))
    %{state | messages: state.messages + length(frames), bytes: bytes}
  end

  defp append(frames, state) do
    time = System.system_time(:microsecond)

    with {:ok, writer} <- Writer.append(state.writer, Enum.map(frames, &{time, &1})),
         do: {:ok, %{state | writer: writer}}
  end

  defp event({:connected, info}, state) do
    notice("connected again")

    case append(beginning(info, state.options), state) do
      {:ok, state} -> loop(state)
      {:error, reason} -> failed(reason, state)
    end
  end

  defp event({:error, frame}, state), do: told(Error.new(frame), "the broker says", state)
  defp event({:disconnected, error}, state), do: told(error, "disconnected", state)
  defp event({:connection_failure, error}, state), do: told(error, "cannot connect", state)

  defp told(error, what, state) do
    notice("#{what}: #{Exception.message(error)}")
    loop(state)
  end

  defp sync(state) do
    Process.send_after(self(), :sync, @second)

    case Writer.sync(state.writer) do
      :ok -> loop(state)
      {:error, reason} -> failed(reason, state)
    end
  end

  defp lost(reason, state) do
    stop(state)
    CommandLine.complain(Text.line("the client has ended: #{Exception.format_exit(reason)}"))
    1
  end

  defp ended(status, state) do
    stop(state)
    came = Report.counts(state.messages, state.bytes, max(now() - state.started, 1))
    notice("#{came}, in #{state.options.file}")
    status
  end

  defp stop(state) do
    Client.close(state.client, @close_timeout)
    Writer.close(state.writer)
  end

  defp failed(reason, state) do
    stop(state)
    cannot_write(reason, state.options)
  end

  defp cannot_write(reason, options) do
    CommandLine.complain("cannot write to #{Text.line(options.file)}: #{text(reason)}")
    1
  end

  defp text(:not_a_recording), do: "it exists, and is no recording"
  defp text(:orphans), do: "its second file exists already, and belongs to another recording"
  defp text(reason), do: :file.format_error(reason)

  defp notice(text), do: IO.puts(:stderr, Text.line(text))
  defp now, do: System.monotonic_time(:millisecond)
end
