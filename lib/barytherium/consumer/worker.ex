defmodule Barytherium.Consumer.Worker do
  @moduledoc false
  # A handler: the process that runs the callbacks of a consumer, and does nothing else. Its client starts it, and
  # tells it of connections; the receive loop sends it the messages. Nothing but its own messages waits for a
  # callback.
  use GenServer, restart: :temporary

  alias Barytherium.Consumer.{Batcher, Handler}
  alias Barytherium.Secret

  # Lists of messages that wait are no part of the heap: each collection of garbage would copy up to 16,000 of them,
  # and take most of the time of a callback that is not very short.
  @options [spawn_opt: [message_queue_data: :off_heap]]

  # The client, in the dictionary of the process, for callbacks.
  @client_key :"$barytherium_consumer_client"

  @doc "The client of the handler that this process is."
  @spec client!() :: pid()
  def client! do
    Process.get(@client_key) || raise ArgumentError, "this is no callback of a consumer"
  end

  @doc "Starts it for the calling client. Returns when the callback `init/1` has."
  @spec start_link(pid(), map()) :: GenServer.on_start()
  def start_link(client, settings),
    do: GenServer.start_link(__MODULE__, {client, settings}, @options)

  @doc "Starts it again. The callback `init/1` runs afterwards."
  @spec start_again(pid(), map()) :: pid()
  def start_again(client, settings) do
    {:ok, pid} = GenServer.start_link(__MODULE__, {:again, client, settings}, @options)
    pid
  end

  @impl true
  # It does not trap exits: a callback that never returns must not outlive the client.
  def init({:again, client, settings}) do
    Process.put(@client_key, client)
    {:ok, nil, {:continue, {client, settings}}}
  end

  def init({client, settings}) do
    Process.put(@client_key, client)

    with {:ok, user_state} <- first_state(settings),
         do: {:ok, state(client, settings, user_state)}
  end

  @impl true
  def handle_continue({client, settings}, nil) do
    working = working(settings)
    Handler.working(working)
    first_state = first_state(settings)
    Handler.idle(working)

    case first_state do
      {:ok, user_state} -> {:noreply, state(client, settings, user_state)}
      {:stop, reason} -> {:stop, reason, nil}
    end
  end

  defp first_state(%{module: module, init_arg: arg}) do
    if function_exported?(module, :init, 1),
      do: module.init(Secret.reveal(arg)),
      else: {:ok, Secret.reveal(arg)}
  end

  defp working(%{working: times, number: number}), do: {times, number}

  defp state(client, settings, user_state) do
    %Handler{
      module: settings.module,
      state: user_state,
      client: client,
      on_exception: settings.on_exception,
      retry: settings.retry,
      nack_headers: settings.nack_headers,
      stop_at: settings.stop_at,
      left: settings.left,
      most_left: settings.most_left,
      working: working(settings),
      batcher: Batcher.new(settings),
      collecting: {settings.collecting, settings.number},
      dealer: settings[:dealer],
      partition: settings[:partition]
    }
  end

  @impl true
  def handle_cast({:barytherium, :frames, {messages, sender, read_at}}, handler) do
    handler = Handler.meet(handler, sender)

    with {:ok, handler} <- handle(messages, sender, read_at, handler),
         do: {:noreply, free(handler)}
  end

  # What is left of an earlier connection makes no batch with this one's.
  def handle_cast({:client, {:session, session}}, handler) do
    with {:ok, handler} <- handle_collected(handler),
         do: {:noreply, Handler.connected(handler, session)}
  end

  def handle_cast({:client, {:connected, info}}, handler),
    do: {:noreply, event(:handle_connected, info, handler)}

  def handle_cast({:client, {event, reason}}, handler)
      when event in [:disconnected, :connection_failure],
      do: {:noreply, event(:handle_disconnected, reason, handler)}

  def handle_cast({:client, {:error, frame}}, handler),
    do: {:noreply, event(:handle_error, frame, handler)}

  # Everything that has arrived was handled.
  def handle_cast({:client, :finish}, handler) do
    with {:ok, handler} <- handle_collected(handler), do: {:stop, :shutdown, handler}
  end

  def handle_cast(stray, handler), do: {:noreply, event(:handle_info, stray, handler)}

  @impl true
  def handle_info({:timeout, timer, :batch}, %{batcher: %Batcher{timer: timer}} = handler) do
    # Nobody has given it this work now.
    if handler.dealer, do: send(handler.dealer, {:busy, self()})
    with {:ok, handler} <- handle_collected(handler), do: {:noreply, free(handler)}
  end

  # One of a batch that was full before.
  def handle_info({:timeout, _timer, :batch}, %{batcher: %Batcher{}} = handler),
    do: {:noreply, handler}

  def handle_info(message, handler), do: {:noreply, event(:handle_info, message, handler)}

  @impl true
  def handle_call(_stray, _from, handler), do: {:reply, {:error, :unknown_call}, handler}

  @doc false
  # The message may hold bodies, and the user's state what was given as `init_arg`.
  # A callback of GenServer since Elixir 1.17. OTP has called it before.
  @impl {:format_status, 1} in GenServer.behaviour_info(:callbacks)
  def format_status(status) do
    status
    |> Secret.without_messages()
    |> Map.replace_lazy(:state, &if(&1, do: %{&1 | state: "...", batcher: "...", acks: []}))
  end

  defp handle(messages, sender, read_at, %{batcher: nil} = handler),
    do: handle_all([{messages, sender, read_at}], handler)

  defp handle(messages, sender, read_at, handler) do
    {batches, batcher} = Batcher.add(handler.batcher, messages, sender, read_at)
    collected(batches, batcher, handler)
  end

  defp collected(batches, batcher, %{collecting: {times, number}} = handler) do
    :atomics.put(times, number, batcher.count)
    handle_all(batches, %{handler | batcher: batcher})
  end

  defp handle_collected(%{batcher: nil} = handler), do: {:ok, handler}

  defp handle_collected(handler) do
    {batches, batcher} = Batcher.take(handler.batcher)
    collected(batches, batcher, handler)
  end

  defp handle_all([], handler), do: {:ok, handler}

  defp handle_all([{messages, sender, read_at} | batches], handler) do
    case Handler.handle(handler, messages, sender, read_at) do
      {:ok, handler} -> handle_all(batches, handler)
      {:stop, handler} -> {:stop, {:shutdown, :exception}, handler}
    end
  end

  defp free(%Handler{dealer: nil} = handler), do: handler

  defp free(%Handler{dealer: dealer} = handler) do
    send(dealer, {:free, self()})
    handler
  end

  defp event(callback, argument, %Handler{module: module} = handler) do
    if function_exported?(module, callback, 2) do
      Handler.working(handler.working)
      {:ok, user_state} = apply(module, callback, [argument, handler.state])
      Handler.idle(handler.working)
      %{handler | state: user_state}
    else
      handler
    end
  end

  @impl true
  def terminate(_reason, nil), do: :ok

  def terminate(reason, %Handler{module: module, state: user_state}) do
    if function_exported?(module, :terminate, 2), do: module.terminate(reason, user_state)
  end
end
