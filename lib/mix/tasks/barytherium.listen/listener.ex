defmodule Mix.Tasks.Barytherium.Listen.Listener do
  @moduledoc false
  # The callback process of `mix barytherium.listen`. It counts and prints frames.
  use GenServer, restart: :temporary

  alias Barytherium.{Frame, Network}
  alias Barytherium.Network.Sender

  @second 1_000
  # A longer string would push the counts off the screen.
  @shown_bytes 200

  @spec start(map()) :: GenServer.on_start()
  def start(feed), do: GenServer.start(__MODULE__, feed)

  @impl true
  def init(%{host: host, port: port, opts: opts} = feed) do
    {:ok, network} = Network.start_link(self(), host, port, opts)
    now = {now(), 0, 0}
    counts = %{frames: 0, bytes: 0, started: now, shown: now, last: nil}
    # A crash report shows the state. The function hides the headers, which may hold a passcode.
    headers = feed.headers
    more = %{network: network, version: "1.0", headers: fn -> headers end}
    {:ok, feed |> Map.merge(counts) |> Map.merge(more)}
  end

  @impl true
  def handle_cast({:barytherium, :connect, {:ok, sender}}, state) do
    own = [{"accept-version", "1.0,1.1,1.2"}, {"heart-beat", "5000,5000"}]
    Sender.write(sender, [%Frame{command: :connect, headers: own ++ state.headers.()}])
    {:noreply, state}
  end

  def handle_cast({:barytherium, :connect, {:error, reason}}, state),
    do: {:stop, {:shutdown, "no connection to #{state.host}:#{state.port}: #{reason}"}, state}

  def handle_cast(
        {:barytherium, :frames, {[%Frame{command: :connected} = frame], sender}},
        state
      ) do
    headers = [{"id", "0"}, {"destination", state.destination}, {"ack", "client-individual"}]
    Sender.write(sender, [%Frame{command: :subscribe, headers: headers}])
    show(frame)
    Process.send_after(self(), :show, @second)
    now = {now(), 0, 0}
    {:noreply, %{state | started: now, shown: now, version: Frame.version(frame)}}
  end

  def handle_cast({:barytherium, :frames, {frames, sender}}, state) do
    for %Frame{command: :error} = frame <- frames, do: show(frame)
    last = List.last(frames)
    if state.ack, do: acknowledge(frames, sender, state.version)
    bytes = Enum.reduce(frames, state.bytes, &(byte_size(&1.body) + &2))
    {:noreply, %{state | frames: state.frames + length(frames), bytes: bytes, last: last}}
  end

  def handle_cast({:barytherium, :disconnect, reason}, state),
    do: {:stop, {:shutdown, "disconnected: #{reason}"}, state}

  @impl true
  def handle_info(:show, state) do
    if state.last, do: show(state.last)
    IO.puts("       #{rate(state, state.shown)}")
    Process.send_after(self(), :show, @second)
    {:noreply, %{state | shown: {now(), state.frames, state.bytes}, last: nil}}
  end

  @impl true
  def handle_call(:summary, _from, state) do
    IO.puts("In all #{state.frames} frames, #{rate(state, state.started)}")
    {:reply, {:ok, state.network}, state}
  end

  defp acknowledge(frames, sender, version) do
    acks =
      for frame <- frames, Frame.acknowledgeable?(frame, version), do: Frame.ack(frame, version)

    Sender.write(sender, acks)
  end

  defp show(frame), do: frame |> inspect(limit: 20, printable_limit: @shown_bytes) |> IO.puts()

  defp rate(state, {since, frames, bytes}) do
    seconds = max(now() - since, 1) / 1000
    frames_a_second = round((state.frames - frames) / seconds)
    megabytes_a_second = Float.round((state.bytes - bytes) / seconds / 1_000_000, 1)
    "#{frames_a_second} frames/s, #{megabytes_a_second} MB/s of bodies"
  end

  defp now, do: System.monotonic_time(:millisecond)
end
