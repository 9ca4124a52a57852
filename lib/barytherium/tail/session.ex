defmodule Barytherium.Tail.Session do
  @moduledoc false
  # The process that gets the messages. It starts a client, subscribes when the client is connected for the
  # first time, and ends with an exit status, after it has unsubscribed and said what came. The client
  # connects again by itself.
  use GenServer, restart: :temporary

  alias Barytherium.{Client, Error, Frame, TestBroker}
  alias Barytherium.Tail.{Format, Login, Options, Output, Report, Terminal, Watching}
  alias Barytherium.Text

  @second 1_000

  # Milliseconds that the broker may take to answer UNSUBSCRIBE, and DISCONNECT.
  @close_timeout 2_000

  # Milliseconds between two looks at a queue that is browsed.
  @browse_interval 1_000

  # Milliseconds between two looks whether somebody still reads what is shown: `head -n 1` may have enough while
  # nothing comes.
  @reader_interval 100

  @enforce_keys [:options, :passcode, :file, :output]
  defstruct @enforce_keys ++
              [
                client: nil,
                # Each destination and how it is watched, and how many messages are shown in all.
                ways: [],
                count: :infinity,
                # The destination of each subscription.
                subscriptions: %{},
                # The ids of the messages of each browsed queue: at the last look, and at this one.
                seen: %{},
                messages: 0,
                bytes: 0,
                # When the subscriptions were made, and the counts a second ago.
                started: nil,
                before: nil
              ]

  @doc """
  Starts a session for the calling process, which it does not outlive. It ends with the reason
  `{:shutdown, {:status, exit_status}}`. `passcode` is a function that returns the password, or `nil`.
  Returns `{:error, {:save, reason}}` if the file of `--save` cannot be opened.
  """
  @spec start(Options.t(), Terminal.t(), nil | (... -> String.t())) :: GenServer.on_start()
  def start(options, terminal, passcode),
    do: GenServer.start(__MODULE__, {options, terminal, passcode, self()})

  @doc "Ends the session in an orderly way, with this exit status."
  @spec stop(pid(), non_neg_integer()) :: :ok
  def stop(session, status), do: GenServer.cast(session, {:stop, status})

  @impl true
  def init({options, terminal, passcode, owner}) do
    Process.monitor(owner)

    case open(options.save) do
      {:ok, file} ->
        output = Output.new(options, terminal)
        state = %__MODULE__{options: options, passcode: passcode, file: file, output: output}
        {:ok, state, {:continue, :start}}

      {:error, reason} ->
        {:stop, {:save, reason}}
    end
  end

  defp open(nil), do: {:ok, nil}
  defp open(path), do: :file.open(path, [:append, :raw, :binary])

  @impl true
  def handle_continue(:start, state) do
    {options, state} = broker(state)
    {:ok, client} = Client.start_link(options ++ [listener: self()])
    # Before there is a connection.
    if state.options.trace, do: :ok = Client.trace(client, self())
    {:noreply, %{state | client: client}}
  end

  defp broker(%{options: %{target: nil} = options} = state) do
    body = String.duplicate("x", options.size)
    {:ok, broker} = TestBroker.start_link(rate: options.rate, body: body)
    text = "A feed in this VM: #{options.rate} messages/s of #{options.size} bytes"
    {[url: "stomp://127.0.0.1:#{TestBroker.port(broker)}"], notice(state, text)}
  end

  defp broker(state), do: {Login.client(state.options, state.passcode), state}

  @impl true
  def handle_cast({:stop, status}, state), do: finish(status, state)

  @impl true
  def handle_info({:barytherium, :messages, {frames, subscription}}, state) do
    # The end overtakes messages that wait, because to show them may take seconds.
    receive do
      :seconds_over -> finish(0, state)
      {:"$gen_cast", {:stop, status}} -> finish(status, state)
    after
      0 -> came(frames, subscription, state)
    end
  end

  def handle_info({:browse, destination}, state) do
    case subscribe_to(destination, :browse, state) do
      {:ok, state} -> {:noreply, state}
      {:error, error} -> fail_to_subscribe(destination, error, state)
    end
  end

  def handle_info({:barytherium, :trace, {direction, frames, _connection}}, state) do
    {:noreply, Enum.reduce(frames, state, &notice(&2, Format.trace(direction, &1)))}
  end

  def handle_info({:barytherium, :client, {event, _client}}, state), do: event(event, state)

  def handle_info(:second, state) do
    Process.send_after(self(), :second, @second)
    now = counts(state)
    rates = rates(state.before, now)
    {:noreply, %{state | before: now, output: Output.second(state.output, rates)}}
  end

  def handle_info(:seconds_over, state), do: finish(0, state)

  def handle_info(:look_for_reader, state) do
    Process.send_after(self(), :look_for_reader, @reader_interval)
    if Terminal.abandoned?(), do: finish(0, state), else: {:noreply, state}
  end

  def handle_info({:DOWN, _monitor, :process, _owner, _reason}, state),
    do: {:stop, :normal, state}

  # Messages

  # More than the 256 frames that a list has.
  @plenty 1_000_000

  # How many messages may still come.
  defp left(%{count: :infinity}), do: @plenty
  defp left(%{count: count, messages: messages}), do: count - messages

  defp came(frames, subscription, state) do
    destination = state.subscriptions[subscription]

    case state.seen do
      %{^destination => seen} -> browsed(frames, subscription, destination, seen, state)
      _not_browsed -> frames |> Enum.take(left(state)) |> show(state)
    end
  end

  # A look at a queue shows what was not there at the last one. It ends with a frame that says so.
  defp browsed(frames, subscription, destination, {before, now}, state) do
    {over, frames} = Enum.split_with(frames, &(Frame.header(&1, "browser") == "end"))
    new = Enum.reject(frames, &(Frame.header(&1, "message-id") in before))
    now = Enum.into(frames, now, &Frame.header(&1, "message-id"))
    state = if over == [], do: state, else: looked(subscription, destination, state)
    seen = if over == [], do: {before, now}, else: {now, MapSet.new()}
    state = put_in(state.seen[destination], seen)
    new |> Enum.take(left(state)) |> show(state)
  end

  defp looked(subscription, destination, state) do
    Client.unsubscribe(state.client, subscription, @close_timeout)
    Process.send_after(self(), {:browse, destination}, @browse_interval)
    %{state | subscriptions: Map.delete(state.subscriptions, subscription)}
  end

  defp show(frames, state) do
    case take(frames, state) do
      {:ok, state} -> if left(state) == 0, do: finish(0, enough(state)), else: {:noreply, state}
      # Nobody reads any more, so this is the end that was wanted.
      {:error, :closed} -> finish(0, state)
      {:error, reason} -> fail("cannot write to #{state.options.save}: #{reason}", state)
    end
  end

  # The user has not said how many are enough.
  defp enough(%{options: %{count: :infinity}} = state),
    do: notice(state, "That is all without --count, because they are taken from a queue")

  defp enough(state), do: state

  # A message is acknowledged when it has been shown and saved.
  defp take(frames, state) do
    time = DateTime.utc_now()
    bytes = Enum.reduce(frames, state.bytes, &(byte_size(&1.body) + &2))

    with :ok <- save(state.file, frames, time),
         {:ok, output} <- Output.messages(state.output, frames, time) do
      # If it is stale, the connection has ended, and the broker will deliver them again.
      if state.options.ack, do: Client.ack(state.client, frames)
      {:ok, %{state | output: output, bytes: bytes, messages: state.messages + length(frames)}}
    end
  end

  defp save(nil, _frames, _time), do: :ok

  defp save(file, frames, time),
    do: :file.write(file, Enum.map(frames, &Format.saved(&1, time)))

  # The connection

  defp event({:connected, info}, %{ways: []} = state) do
    server = info.server || "a server without a name"
    text = "Connected to #{info.endpoint}: #{server}, STOMP #{info.version}"
    state |> notice(text) |> watch(info.server) |> subscribe()
  end

  defp event({:connected, _info}, state), do: {:noreply, notice(state, "Connected again")}

  defp event({:connection_failure, error}, %{started: nil} = state) do
    lines = error |> Login.failure(state.options.target) |> String.split("\n")
    finish(1, Enum.reduce(["Error: " <> hd(lines) | tl(lines)], state, &notice(&2, &1)))
  end

  defp event({:connection_failure, error}, state),
    do:
      {:noreply,
       notice(
         state,
         "Cannot connect to #{endpoint(state)}: #{Exception.message(error)}. Trying again"
       )}

  defp event({:disconnected, error}, %{started: nil} = state),
    do: fail("disconnected: " <> Exception.message(error), state)

  defp event({:disconnected, error}, state),
    do: {:noreply, notice(state, "Disconnected: #{Exception.message(error)}. Connecting again")}

  # The failure of the attempt to connect follows, and says the same.
  defp event({:error, _frame}, %{ways: []} = state), do: {:noreply, state}

  defp event({:error, frame}, state),
    do: {:noreply, notice(state, Exception.message(Error.new(frame)))}

  # With several addresses or a mistyped one, the reason alone does not help.
  defp endpoint(state), do: Client.status(state.client).endpoint

  # Finds out how each destination can be watched, and says what that does.
  defp watch(%{options: options} = state, server) do
    ways =
      for destination <- options.destinations,
          do: {destination, Watching.way(destination, server, options)}

    count = ways |> Enum.map(&elem(&1, 1)) |> Watching.count(options)

    browsed =
      for {destination, :browse} <- ways,
          into: %{},
          do: {destination, {MapSet.new(), MapSet.new()}}

    output = if count == :infinity, do: state.output, else: Output.show_all(state.output)
    state = %{state | ways: ways, count: count, seen: browsed, output: output}
    warning = Watching.warning(ways, server, count)
    if warning, do: notice(state, warning), else: state
  end

  defp subscribe(%{ways: ways} = state) do
    with {:ok, state} <- subscribe(ways, state) do
      Process.send_after(self(), :second, @second)
      Process.send_after(self(), :look_for_reader, @reader_interval)
      %{seconds: seconds} = state.options
      if seconds != :infinity, do: Process.send_after(self(), :seconds_over, seconds * @second)
      now = counts(state)
      {:noreply, %{state | started: now, before: now}}
    end
  end

  defp subscribe([], state), do: {:ok, state}

  defp subscribe([{destination, way} | others], state) do
    case subscribe_to(destination, way, state) do
      {:ok, state} -> subscribe(others, state)
      {:error, error} -> fail_to_subscribe(destination, error, state)
    end
  end

  defp subscribe_to(destination, way, state) do
    share = Watching.shares(state.ways, state.count)[destination] || state.count
    headers = Watching.headers(way) ++ state.options.headers
    options = [headers: headers] ++ Watching.subscription(way, share)

    with {:ok, subscription} <- Client.subscribe(state.client, destination, options),
         do: {:ok, put_in(state.subscriptions[subscription], destination)}
  end

  defp fail_to_subscribe(destination, error, state),
    do: fail("cannot subscribe to #{destination}: #{Exception.message(error)}", state)

  # The end

  defp fail(text, state), do: finish(1, notice(state, "Error: " <> text))

  defp finish(status, state) do
    state.subscriptions
    |> Map.keys()
    |> Enum.all?(&(Client.unsubscribe(state.client, &1, @close_timeout) == :ok))

    Client.close(state.client, @close_timeout)
    state = if state.started, do: notice(state, summary(state)), else: state
    {:stop, {:shutdown, {:status, status}}, state}
  end

  defp summary(%{started: {started, 0, 0}} = state) do
    {now, messages, bytes} = counts(state)
    came = Report.counts(messages, bytes, max(now - started, 1))
    saved = if state.file, do: ", saved in #{state.options.save}", else: ""
    came <> saved <> Output.not_shown(state.output)
  end

  defp rates({before, messages_before, bytes_before}, {now, messages, bytes}) do
    rate = Report.rate(messages - messages_before, bytes - bytes_before, max(now - before, 1))
    "#{Report.plural(messages, "message")}, #{rate}. Ctrl-C ends"
  end

  defp counts(state), do: {System.monotonic_time(:millisecond), state.messages, state.bytes}

  # Some of the text comes from the broker.
  defp notice(state, text), do: %{state | output: Output.notice(state.output, Text.line(text))}
end
