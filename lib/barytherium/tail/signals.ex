defmodule Barytherium.Tail.Signals do
  @moduledoc false
  # Handles SIGTERM, and SIGQUIT, which Ctrl-C sends (see `Barytherium.Tail.Terminal`), in place of OTP's
  # handler, which would end the VM.
  @behaviour :gen_event

  @server :erl_signal_server
  @default :erl_signal_handler

  # What a shell reports for a program that was ended by the signal. For Ctrl-C that is SIGINT.
  @statuses %{sigquit: 130, sigterm: 143}

  @doc "`fun` gets the exit status for each signal."
  @spec trap((pos_integer() -> term())) :: :ok
  def trap(fun) do
    :ok = :gen_event.swap_handler(@server, {@default, []}, {__MODULE__, fun})
    Enum.each(Map.keys(@statuses), &:os.set_signal(&1, :handle))
  end

  @spec untrap() :: :ok
  def untrap do
    :gen_event.delete_handler(@server, __MODULE__, [])
    :gen_event.add_handler(@server, @default, [])
  end

  @impl true
  def init({fun, _swapped}), do: {:ok, fun}

  @impl true
  def handle_event(signal, fun) when is_map_key(@statuses, signal) do
    fun.(@statuses[signal])
    {:ok, fun}
  end

  # SIGUSR1 for example, for which OTP's handler writes a crash dump.
  def handle_event(signal, fun) do
    @default.handle_event(signal, [])
    {:ok, fun}
  end

  @impl true
  def handle_call(_request, fun), do: {:ok, :ok, fun}
end
