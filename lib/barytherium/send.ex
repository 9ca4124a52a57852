defmodule Barytherium.Send do
  @moduledoc false
  # The program behind `mix barytherium.send`.

  alias Barytherium.{Client, Error, Text}
  alias Barytherium.Send.{Help, Lines, Options}
  alias Barytherium.Tail.{CommandLine, Login, Report, Signals, Terminal}

  # Messages whose receipts are waited for together. With a rate, a twentieth of a second's.
  @together 256
  @a_second 20

  # Characters of the bar, and milliseconds between two pictures of it.
  @bar 20
  @picture 100

  # Milliseconds that the broker may take to confirm the messages that are written together.
  @timeout 30_000

  @doc "Runs the program, and returns its exit status. `command` is its name. The bar is drawn on stderr."
  @spec run([String.t()], String.t(), Terminal.t()) :: non_neg_integer()
  def run(argv, command, terminal \\ Terminal.detect(2)),
    do: CommandLine.run(argv, command, {Options, Help}, &start(&1, terminal))

  defp start(options, terminal) do
    with {:ok, bodies} <- bodies(options) do
      passcode = Login.passcode(options.target)
      trapped = Process.flag(:trap_exit, true)

      try do
        connect(options, bodies, passcode, terminal)
      after
        Process.flag(:trap_exit, trapped)
      end
    else
      {:error, text} ->
        CommandLine.complain(text)
        1
    end
  end

  defp bodies(%{lines: true}) do
    bytes_from_stdin()
    {:ok, :lines}
  end

  defp bodies(%{body: "-"} = options) do
    bytes_from_stdin()
    repeated(IO.binread(:stdio, :eof), options)
  end

  defp bodies(%{body: "@" <> path} = options) do
    case File.read(path) do
      {:ok, bytes} ->
        repeated(bytes, options)

      {:error, reason} ->
        {:error, "cannot read #{Text.line(path)}: #{:file.format_error(reason)}"}
    end
  end

  defp bodies(%{body: body} = options), do: repeated(body, options)

  # Bytes that are not text pass a device only if it believes in Latin-1.
  defp bytes_from_stdin, do: :io.setopts(:standard_io, encoding: :latin1)

  defp repeated(:eof, options), do: repeated("", options)
  defp repeated(body, %{count: count}), do: {:ok, Stream.duplicate(body, count)}

  defp connect(options, bodies, passcode, terminal) do
    case options |> Login.client(passcode) |> Login.connect() do
      {:ok, client, info} ->
        state = %{
          client: client,
          options: options,
          terminal: terminal,
          confirmed: 0,
          bytes: 0,
          started: now(),
          drawn: now() - @picture
        }

        sender = self()
        Signals.stop_with(&send(sender, {:signal, &1}))
        {status, state} = send_all(bodies, state)
        summary(state, info)
        Client.close(client)
        status

      {:error, error} ->
        CommandLine.complain(Login.failure(error, options.target))
        1
    end
  end

  defp send_all(:lines, state), do: send_lines(Lines.start(), state)

  defp send_all(bodies, state) do
    bodies
    |> Stream.chunk_every(together(state))
    |> Enum.reduce_while({0, state}, fn bodies, {0, state} ->
      case send_some(bodies, state) do
        {0, state} -> {:cont, {0, state}}
        ended -> {:halt, ended}
      end
    end)
  end

  defp send_lines(reader, state) do
    with {:ok, lines} <- Lines.next(reader, together(state)),
         {0, state} <- send_some(lines, state) do
      Lines.taken(reader, length(lines))
      send_lines(reader, state)
    else
      :eof -> {0, state}
      {:signal, status} -> {status, state}
      ended -> ended
    end
  end

  defp together(%{options: %{rate: :infinity}}), do: @together
  defp together(%{options: %{rate: rate}}), do: rate |> div(@a_second) |> max(1) |> min(@together)

  # Milliseconds until so many more messages may be sent.
  defp due(_count, %{options: %{rate: :infinity}}), do: 0

  defp due(count, %{options: %{rate: rate}} = state),
    do: max(state.started + div((state.confirmed + count) * 1_000, rate) - now(), 0)

  # `{0, state}`, or another exit status. What is not due yet is waited for.
  defp send_some(bodies, state) do
    receive do
      {:signal, status} -> {status, state}
    after
      due(length(bodies), state) -> publish(bodies, state)
    end
  end

  defp publish(bodies, %{options: options} = state) do
    bodies = if options.gzip, do: Enum.map(bodies, &:zlib.gzip/1), else: bodies
    messages = for body <- bodies, do: {options.destination, body, options.headers}
    opts = [timeout: @timeout, persistent: options.persistent]

    case Client.publish_many(state.client, messages, opts) do
      :ok ->
        {0, progress(confirm(bodies, state))}

      {:error, error, left} ->
        state = confirm(bodies -- Enum.map(left, &elem(&1, 1)), state)
        erase(state)
        CommandLine.complain(refused(error))
        {1, state}
    end
  end

  defp refused(%Error{} = error), do: "not confirmed: " <> Text.line(Exception.message(error))

  defp confirm(bodies, state) do
    bytes = Enum.reduce(bodies, state.bytes, &(byte_size(&1) + &2))
    %{state | confirmed: state.confirmed + length(bodies), bytes: bytes}
  end

  defp progress(%{terminal: %{live: false}} = state), do: state

  defp progress(%{options: %{count: 1, lines: false}} = state), do: state

  # Ten times a second, on a line of at most 80 characters.
  defp progress(%{drawn: drawn} = state) do
    now = now()

    if now - drawn >= @picture do
      rate = Report.rate(state.confirmed, state.bytes, max(now - state.started, 1))
      messages = Report.plural(state.confirmed, "message")
      IO.write(:stderr, ["\r\e[K", bar(state), messages, ", ", rate])
      %{state | drawn: now}
    else
      state
    end
  end

  defp bar(%{options: %{lines: true}}), do: ""

  defp bar(%{confirmed: confirmed, options: %{count: count}}) do
    filled = div(confirmed * @bar, count)
    ["[", String.duplicate("#", filled), String.duplicate(".", @bar - filled), "] "]
  end

  defp erase(%{terminal: %{live: true}}), do: IO.write(:stderr, "\r\e[K")
  defp erase(_state), do: :ok

  defp summary(state, info) do
    erase(state)
    server = info.server || "the broker"
    IO.puts(:stderr, Text.line("#{server} has confirmed #{counts(state)}"))
  end

  defp counts(state),
    do: Report.counts(state.confirmed, state.bytes, max(now() - state.started, 1))

  defp now, do: System.monotonic_time(:millisecond)
end
