defmodule Barytherium do
  @moduledoc """
  A STOMP client (1.0, 1.1 and 1.2) for high-volume feeds. Its frame parser and its receive loop
  are native code.

    * `Barytherium.Consumer` - handles messages, and stays connected. Start here;
    * `Barytherium.Client` - publishes, subscribes and acknowledges, and stays connected;
    * `Barytherium.Network` - below these: one connection. It sends every event to a process of yours, the
      callback process. `Barytherium.DefaultCallbackHandler` is an example of one;
    * `Barytherium.Telemetry` - the events for monitoring;
    * `Barytherium.TestBroker` - a small broker for tests and experiments.
  """
end
